//! Delays between tries, as a pure sequence.

use std::time::Duration;

/// How long to wait before the next try: `min(base · 2^(n−1), cap)` plus jitter, for the n-th failure in a row.
///
/// ```
/// # use std::time::Duration;
/// # use gen_worker_core::Backoff;
/// let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(60), Duration::ZERO);
/// let waits: Vec<u64> = (0..6).map(|_| backoff.next(0.0).as_secs()).collect();
/// assert_eq!(waits, [5, 10, 20, 40, 60, 60]);
/// ```
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    jitter: Duration,
    failures: u32,
}

impl Backoff {
    /// A sequence that starts at `base`, doubles up to `cap` (zero: no cap) and adds up to `jitter`.
    pub fn new(base: Duration, cap: Duration, jitter: Duration) -> Self {
        let cap = if cap.is_zero() { Duration::MAX } else { cap };
        Self { base, cap, jitter, failures: 0 }
    }

    /// Counts a failure and returns the delay after it. `chance` in 0..1 picks the jitter.
    pub fn next(&mut self, chance: f64) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let delay = self.base.saturating_mul(factor).min(self.cap);
        delay.saturating_add(self.jitter.mul_f64(chance.clamp(0.0, 1.0)))
    }

    /// How many failures in a row were counted.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Starts over, after a time of health.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::ZERO, Duration::from_secs(1));
        let last = (0..10_000).map(|_| backoff.next(1.0)).last().unwrap();
        assert_eq!(last, Duration::from_secs(5) * u32::MAX + Duration::from_secs(1));
        backoff.reset();
        assert_eq!(backoff.next(0.5), Duration::from_millis(5500));
    }
}
