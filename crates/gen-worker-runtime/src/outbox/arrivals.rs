//! What runs leave for the outbox, on threads of their own: kept so short a time that they do not wait for each other.

use std::{collections::VecDeque, sync::Arc};

use gen_worker_core::{Event, EventClass};

use super::Key;
use crate::{admission::Permit, job::Line, wire::Message};

/// A run that has ended: its result, and the place that it held.
pub(super) struct Ending {
    pub key: Key,
    pub message: Message,
    pub permit: Arc<Permit>,
    pub line: Option<Box<Line>>,
}

/// What has come since somebody looked.
pub(super) struct Arrivals {
    capacity: usize,
    pub endings: Vec<Ending>,
    /// Droppable ones, and as many as there is room for.
    pub events: VecDeque<Event>,
    pub dropped: u64,
}

impl Arrivals {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, endings: Vec::new(), events: VecDeque::new(), dropped: 0 }
    }

    /// Whether the next event makes another go.
    pub(super) fn are_full(&self) -> bool {
        self.events.len() >= self.capacity
    }

    /// Takes an event that may be dropped; where there is no room, the oldest goes that closes nothing. `None`: it was
    /// dropped on its way.
    pub(super) fn hear(&mut self, event: Option<Event>) {
        if event.is_none() || self.are_full() {
            self.dropped += 1;
        }
        if event.is_some() && self.are_full() {
            let droppable = |event: &Event| event.class == EventClass::Droppable;
            self.events.remove(self.events.iter().position(droppable).unwrap_or(0));
        }
        self.events.extend(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_bounded() {
        let mut arrivals = Arrivals::new(3);
        for n in 0..100_000 {
            arrivals.hear(Some(Event::progress(f64::from(n), None)));
        }
        assert_eq!((arrivals.events.len(), arrivals.dropped), (3, 99_997));
        let closing = Event { class: EventClass::Closing, ..Event::progress(1.0, None) };
        arrivals.hear(Some(closing));
        for _ in 0..9 {
            arrivals.hear(Some(Event::progress(99999.0, None)));
        }
        assert_eq!((arrivals.events.len(), arrivals.events[0].class), (3, EventClass::Closing));
        let newest = String::from_utf8_lossy(&arrivals.events[2].payload_json);
        assert!(newest.contains("99999"), "{newest}");
    }
}
