//! Whether an answer comes fast enough, told without a clock of its own.

use std::time::Duration;

use tokio::time::Instant;

/// Counts bytes over windows of time. What a reader does between two reads is not the server's time.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Duration,
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// At least `rate` bytes a second over each `window` of waiting; 0: any rate will do.
    pub(crate) fn new(window: Duration, rate: u64) -> Self {
        let least = (rate as f64 * window.as_secs_f64()) as u64;
        Self { window, least, waited: Duration::ZERO, bytes: 0 }
    }

    /// How long silence may last.
    pub(crate) fn window(&self) -> Duration {
        self.window
    }

    /// Takes the bytes that came after a wait from `asked` to `now`. False: a whole window brought too few.
    pub(crate) fn holds(&mut self, asked: Instant, now: Instant, bytes: u64) -> bool {
        self.waited += now.saturating_duration_since(asked);
        self.bytes += bytes;
        if self.waited < self.window {
            return true;
        }
        let enough = self.bytes >= self.least;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each of these waits, in seconds, and what it brought is fast enough.
    fn judge(rate: u64, reads: &[(u64, u64)]) -> Vec<bool> {
        let mut pace = Pace::new(Duration::from_secs(30), rate);
        let start = Instant::now();
        let holds =
            |(seconds, bytes): &(u64, u64)| pace.holds(start, start + Duration::from_secs(*seconds), *bytes);
        reads.iter().map(holds).collect()
    }

    #[test]
    fn a_trickle_is_too_slow_and_a_pause_is_not() {
        assert_eq!(judge(100, &[(29, 1), (1, 1)]), [true, false]);
        assert_eq!(judge(100, &[(29, 2999), (1, 1)]), [true, true]);
        assert_eq!(judge(100, &[(29, 5000), (1, 1), (30, 1)]), [true, true, false]);
        assert_eq!(judge(0, &[(30, 0), (30, 0)]), [true, true]);
    }
}
