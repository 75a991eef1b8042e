//! How many lines of a kind are logged.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines a second. More is not read by anyone, and costs more than the runs it speaks of.
const LINES: u32 = 100;

/// So many lines in each second, and a count of what was left out.
#[derive(Default)]
pub(crate) struct Ration(Mutex<Window>);

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Ration {
    /// Takes a line: how many were left out since the last one, if any were. `None`: this one is left out.
    pub(crate) fn take(&self) -> Option<Option<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now())
    }
}

impl Window {
    fn take(&mut self, now: Instant) -> Option<Option<u64>> {
        if self.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(Some(std::mem::take(&mut self.left_out)).filter(|left_out| *left_out > 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_in_the_next_line() {
        let (mut window, now) = (Window::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(window.take(now), Some(None));
        }
        assert_eq!((window.take(now), window.take(now)), (None, None));
        assert_eq!(window.take(now + Duration::from_secs(1)), Some(Some(2)));
        assert_eq!(window.take(now + Duration::from_secs(1)), Some(None));
    }
}
