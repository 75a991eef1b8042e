//! Which calls are so short that they are made where they are awaited: a decision, on times that others measured.
//!
//! To wake a thread and to be woken by it takes 10 µs while cores are awake, and 60 µs when they are not, whatever the call takes.

use std::time::Duration;

/// So many short calls in a row make the next one a short one.
const IN_A_ROW: u32 = 8;

/// How long the calls of a graph took of late.
#[derive(Debug)]
pub(crate) struct Pace {
    /// The longest call that is a short one; zero: there are none.
    short: Duration,
    /// Short calls since the last that was none.
    in_a_row: u32,
    /// The most elements that inputs of theirs had.
    elements: usize,
}

impl Pace {
    pub(crate) fn new(short: Duration) -> Self {
        Self { short, in_a_row: 0, elements: 0 }
    }

    /// Whether a call with so many elements as inputs will be a short one, as far as those before it tell: they all were, and one
    /// was as large.
    pub(crate) fn is_short(&self, elements: usize) -> bool {
        self.in_a_row >= IN_A_ROW && elements <= self.elements
    }

    /// A call with so many elements as inputs took so long.
    pub(crate) fn took(&mut self, elements: usize, time: Duration) {
        if self.short.is_zero() || time > self.short {
            (self.in_a_row, self.elements) = (0, 0);
        } else {
            self.in_a_row = self.in_a_row.saturating_add(1);
            self.elements = self.elements.max(elements);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(100);

    #[test]
    fn what_was_short_often_enough_and_is_no_larger_is_short() {
        let mut pace = Pace::new(SHORT);
        for _ in 0..IN_A_ROW {
            assert!(!pace.is_short(1));
            pace.took(16, SHORT);
        }
        assert!(pace.is_short(16) && pace.is_short(1) && !pace.is_short(17));
        pace.took(1, SHORT * 2);
        assert!(!pace.is_short(1), "one that was longer begins it anew");
    }

    #[test]
    fn without_a_limit_none_is_short() {
        let mut pace = Pace::new(Duration::ZERO);
        (0..2 * IN_A_ROW).for_each(|_| pace.took(1, Duration::ZERO));
        assert!(!pace.is_short(1));
    }
}
