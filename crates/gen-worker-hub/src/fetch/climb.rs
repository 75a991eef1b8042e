//! How many connections bring a file: all where the network is the limit, few where this machine is.

use std::time::Duration;

use tokio::time::Instant;

/// How long the first connection is watched before others are opened.
const PROBE: Duration = Duration::from_millis(50);
/// How long a number of connections is watched after that.
const STAGE: Duration = Duration::from_millis(100);
/// Bytes a second. Eight connections of this rate bring more than a core hashes: what is slower is held back by the
/// network or the server, and what is faster may be held back by this machine.
const FAST: u64 = 200_000_000;

/// Decides on the number of connections, told how far the file is.
#[derive(Debug)]
pub(super) struct Climb {
    most: usize,
    now: usize,
    stage: Stage,
    since: Instant,
    done: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Is the first connection slow?
    Probe,
    /// How fast is it?
    Alone,
    /// Does the one that was added make it faster than `before`, in bytes a second?
    Added { before: u64 },
    /// The last one did not: it stays like this unless it becomes slow.
    Enough,
    /// All there may be.
    All,
}

impl Climb {
    /// Begins with one connection of `most`, `done` bytes into the file.
    pub(super) fn new(most: usize, now: Instant, done: u64) -> Self {
        let stage = if most > 1 { Stage::Probe } else { Stage::All };
        Self { most, now: 1, stage, since: now, done }
    }

    /// How many connections there should be, now that `done` bytes of the file are there.
    pub(super) fn step(&mut self, now: Instant, done: u64) -> usize {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < self.stage.length() {
            return self.now;
        }
        let rate = (done.saturating_sub(self.done) as f64 / elapsed.as_secs_f64()) as u64;
        (self.since, self.done) = (now, done);
        (self.now, self.stage) = match self.stage {
            _ if rate < FAST => (self.most, Stage::All),
            Stage::Probe => (self.now, Stage::Alone),
            Stage::Alone => (self.now + 1, Stage::Added { before: rate }),
            // Less than a fifth is noise.
            Stage::Added { before } if rate < before + before / 5 => (self.now - 1, Stage::Enough),
            Stage::Added { .. } if self.now == self.most => (self.now, Stage::All),
            Stage::Added { .. } => (self.now + 1, Stage::Added { before: rate }),
            stage @ (Stage::Enough | Stage::All) => (self.now, stage),
        };
        self.now
    }

    /// Whether the number may still change.
    pub(super) fn goes_on(&self) -> bool {
        self.stage != Stage::All
    }
}

impl Stage {
    fn length(self) -> Duration {
        match self {
            Self::Probe => PROBE,
            Self::Alone | Self::Added { .. } | Self::Enough | Self::All => STAGE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many connections there are after each tenth of a second, if so many bring so much in that time.
    fn climb(most: usize, tenths: usize, megabytes: impl Fn(usize, usize) -> u64) -> Vec<usize> {
        let (start, mut done) = (Instant::now(), 0);
        let mut climb = Climb::new(most, start, done);
        let mut lanes = 1;
        let tenth = |nth: usize| {
            done += megabytes(nth, lanes) * 1_000_000;
            lanes = climb.step(start + STAGE * (nth as u32 + 1), done);
            lanes
        };
        (0..tenths).map(tenth).collect()
    }

    #[test]
    fn a_server_that_caps_each_connection_gets_all_at_once() {
        assert_eq!(climb(8, 3, |_, lanes| 2 * lanes as u64), [8, 8, 8]);
        let start = Instant::now();
        let mut climb = Climb::new(8, start, 0);
        assert_eq!((climb.step(start + PROBE / 2, 0), climb.step(start + PROBE, 0)), (1, 8));
        assert!(!climb.goes_on());
    }

    #[test]
    fn a_machine_that_is_the_limit_keeps_one() {
        assert_eq!(climb(8, 6, |_, _| 100), [1, 2, 1, 1, 1, 1]);
        // More of them only get into each other's way.
        assert_eq!(climb(8, 5, |_, lanes| 100 / lanes as u64), [1, 2, 1, 1, 1]);
    }

    #[test]
    fn a_connection_more_stays_while_it_pays() {
        assert_eq!(climb(8, 8, |_, lanes| 60 * lanes.min(3) as u64), [1, 2, 3, 4, 3, 3, 3, 3]);
        assert_eq!(climb(3, 5, |_, lanes| 60 * lanes as u64), [1, 2, 3, 3, 3]);
    }

    #[test]
    fn a_burst_that_ends_gets_all() {
        assert_eq!(climb(8, 6, |nth, _| if nth < 4 { 100 } else { 5 }), [1, 2, 1, 1, 8, 8]);
    }

    #[test]
    fn one_stays_one() {
        assert_eq!(climb(1, 4, |_, _| 1), [1, 1, 1, 1]);
    }
}
