//! What runs say while they work: in the order in which they said it, within a number of places.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use gen_worker_core::{Event, EventClass, RunId};

use crate::wire::TRUNCATED;

/// Room for a message's other fields beside an event's type and payload.
const ENVELOPE_BYTES: usize = 1 << 10;

/// How large an event may be. A larger one than a message can hold would end the stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct EventLimit(usize);

impl EventLimit {
    pub(super) fn within(max_message_bytes: usize) -> Self {
        Self(max_message_bytes.saturating_sub(ENVELOPE_BYTES))
    }

    /// The event, without its payload if that is too large; `None`: not even its type fits.
    pub(super) fn fit(self, mut event: Event) -> Option<Event> {
        if event.event_type.len() + event.payload_json.len() > self.0 {
            event.payload_json = Bytes::from_static(TRUNCATED);
        }
        (event.event_type.len() + event.payload_json.len() <= self.0).then_some(event)
    }
}

/// Events that wait. Every operation takes about the same time, however many do.
pub(super) struct Events {
    capacity: usize,
    /// By the number of each, which says their order.
    durable: BTreeMap<u64, Event>,
    droppable: BTreeMap<u64, Event>,
    /// The numbers of each run's events, in order.
    by_run: HashMap<RunId, VecDeque<u64>>,
    next: u64,
    dropped: u64,
}

impl Events {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            durable: BTreeMap::new(),
            droppable: BTreeMap::new(),
            by_run: HashMap::new(),
            next: 0,
            dropped: 0,
        }
    }

    /// Takes an event. When there is no room, the oldest that may be dropped goes, if need be this one.
    ///
    /// # Errors
    /// There is no room, and neither this event nor any that waits may be dropped.
    pub(super) fn push(&mut self, event: Event) -> Result<(), Event> {
        if self.len() >= self.capacity {
            match (self.droppable.first_key_value(), event.class) {
                (Some((oldest, _)), _) => {
                    self.take(*oldest);
                }
                (None, EventClass::Durable) => return Err(event),
                (None, EventClass::Droppable) => {
                    self.dropped += 1;
                    return Ok(());
                }
            }
            self.dropped += 1;
        }
        self.push_beyond(event);
        Ok(())
    }

    /// Takes an event, room or not.
    pub(super) fn push_beyond(&mut self, event: Event) {
        let number = self.next;
        self.next += 1;
        if let Some(run_id) = &event.run_id {
            self.by_run.entry(run_id.clone()).or_default().push_back(number);
        }
        match event.class {
            EventClass::Durable => self.durable.insert(number, event),
            EventClass::Droppable => self.droppable.insert(number, event),
        };
    }

    /// Counts one that was dropped before it came here.
    pub(super) fn drop_one(&mut self) {
        self.dropped += 1;
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let oldest = [self.durable.first_key_value(), self.droppable.first_key_value()];
        let number = oldest.into_iter().flatten().map(|(number, _)| *number).min()?;
        self.take(number)
    }

    /// The oldest of this run.
    pub(super) fn pop_of(&mut self, run_id: &RunId) -> Option<Event> {
        if self.by_run.is_empty() {
            return None;
        }
        let number = *self.by_run.get(run_id)?.front()?;
        self.take(number)
    }

    pub(super) fn len(&self) -> usize {
        self.durable.len() + self.droppable.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one that may not be dropped would be taken.
    pub(super) fn has_room(&self) -> bool {
        self.len() < self.capacity || !self.droppable.is_empty()
    }

    /// How many were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn take(&mut self, number: u64) -> Option<Event> {
        let event = self.droppable.remove(&number).or_else(|| self.durable.remove(&number))?;
        if let Some(run_id) = &event.run_id
            && let Some(numbers) = self.by_run.get_mut(run_id)
        {
            if let Ok(at) = numbers.binary_search(&number) {
                numbers.remove(at);
            }
            if numbers.is_empty() {
                self.by_run.remove(run_id);
            }
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(run: &str, event: Event) -> Event {
        event.about(&RunId::parse(run).unwrap())
    }

    fn delta(run: &str, n: usize) -> Event {
        about(run, Event::delta(n.to_string().into()))
    }

    fn progress(run: &str) -> Event {
        about(run, Event::progress(0.5, None))
    }

    #[test]
    fn every_buffer_is_bounded() {
        let mut events = Events::new(3);
        for _ in 0..100_000 {
            events.push(progress("loud")).unwrap();
        }
        assert_eq!((events.len(), events.take_dropped()), (3, 99_997));
        for n in 0..3 {
            events.push(delta("a", n)).unwrap();
        }
        assert!(events.push(delta("a", 4)).is_err(), "a delta is never dropped");
        assert!(!events.has_room());
        events.push(progress("loud")).unwrap();
        assert_eq!((events.len(), events.take_dropped()), (3, 4));
        events.push_beyond(delta("a", 5));
        assert_eq!(events.len(), 4);
    }

    #[test]
    fn an_event_fits_into_a_message() {
        let limit = EventLimit::within(ENVELOPE_BYTES + 100);
        let small = delta("a", 7);
        assert_eq!(limit.fit(small.clone()), Some(small));
        let large = Event { payload_json: vec![b'x'; 101].into(), ..progress("a") };
        assert_eq!(limit.fit(large).unwrap().payload_json, TRUNCATED);
        assert_eq!(limit.fit(Event { event_type: "x".repeat(101).into(), ..progress("a") }), None);
    }

    #[test]
    fn nothing_is_left_of_what_was_taken() {
        let mut events = Events::new(8);
        for run in ["a", "b", "a", "b"] {
            events.push(delta(run, 0)).unwrap();
            events.push(progress(run)).unwrap();
        }
        let b = RunId::parse("b").unwrap();
        assert_eq!(std::iter::from_fn(|| events.pop_of(&b)).count(), 4);
        assert_eq!(std::iter::from_fn(|| events.pop()).count(), 4);
        assert!(events.is_empty() && events.by_run.is_empty());
    }
}
