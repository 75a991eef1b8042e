//! Numbers with a unit.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` GiB.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let power = (self.0.max(1).ilog2() / 10).min(4);
        let scaled = self.0 as f64 / (1u64 << (10 * power)) as f64;
        if power == 0 {
            write!(f, "{} B", self.0)
        } else {
            write!(f, "{scaled:.1} {}", UNITS[power as usize])
        }
    }
}

/// How many bytes something may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteLimit {
    /// Any number.
    Unlimited,
    /// At most this many; `Max(ByteSize(0))` admits only empty things.
    Max(ByteSize),
}

impl ByteLimit {
    /// Whether `size` is within the limit.
    pub fn admits(self, size: u64) -> bool {
        match self {
            Self::Unlimited => true,
            Self::Max(max) => size <= max.0,
        }
    }

    /// The limit in bytes, `None` when there is none.
    pub fn max(self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Max(max) => Some(max.0),
        }
    }
}

/// When a run must have ended: on the monotonic clock for waiting, on the wall clock for showing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// For waiting; immune to changes of the wall clock.
    pub at: Instant,
    /// For telling people and other hosts.
    pub wall: SystemTime,
}

impl Deadline {
    /// The deadline `after` from now. A duration too long to be represented is a deadline in 100 years.
    pub fn after(after: Duration) -> Self {
        let after = after.min(Duration::from_secs(100 * 365 * 24 * 3600));
        Self { at: Instant::now() + after, wall: SystemTime::now() + after }
    }

    /// Time left; zero once it has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Milliseconds since the Unix epoch.
    pub fn unix_ms(&self) -> u64 {
        self.wall.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_sizes() {
        let shown = [0, 1023, 1024, 1_610_612_736].map(|n| ByteSize(n).to_string());
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
    }

    #[test]
    fn the_longest_timeout_is_a_deadline() {
        assert!(Deadline::after(Duration::MAX).remaining() > Duration::from_secs(3600));
    }
}
