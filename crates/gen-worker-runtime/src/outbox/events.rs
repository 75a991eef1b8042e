//! What runs say while they work: in the order in which they said it, within a number of places.

use std::collections::{HashMap, VecDeque};

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

/// Events that wait. However many do, no operation looks at more than a few.
pub(super) struct Events {
    capacity: usize,
    durable: Line,
    droppable: Line,
    closing: Line,
    /// The numbers of each run's events, in order.
    by_run: HashMap<RunId, VecDeque<u64>>,
    next: u64,
    dropped: u64,
}

impl Events {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            durable: Line::default(),
            droppable: Line::default(),
            closing: Line::default(),
            by_run: HashMap::new(),
            next: 0,
            dropped: 0,
        }
    }

    /// Takes an event. When there is no room, the oldest that may be dropped goes, if need be this one; for what only
    /// tells how far something is, never one that closes it.
    ///
    /// # Errors
    /// There is no room, and neither this event nor any that waits may be dropped.
    pub(super) fn push(&mut self, event: Event) -> Result<(), Event> {
        if self.len() >= self.capacity {
            let closing = self.closing.oldest().filter(|_| event.class != EventClass::Droppable);
            let goes = self.droppable.oldest().or(closing);
            if goes.is_none() && event.class == EventClass::Durable {
                return Err(event);
            }
            self.dropped += 1;
            match goes {
                Some(oldest) => drop(self.take(oldest)),
                None => return Ok(()),
            }
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
            EventClass::Durable => self.durable.0.push_back((number, event)),
            EventClass::Droppable => self.droppable.0.push_back((number, event)),
            EventClass::Closing => self.closing.0.push_back((number, event)),
        }
    }

    /// Counts what was dropped before it came here.
    pub(super) fn count_dropped(&mut self, dropped: u64) {
        self.dropped += dropped;
    }

    /// The oldest.
    pub(super) fn pop(&mut self) -> Option<Event> {
        let oldest = [self.durable.oldest(), self.droppable.oldest(), self.closing.oldest()];
        self.take(oldest.into_iter().flatten().min()?)
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
        self.durable.0.len() + self.droppable.0.len() + self.closing.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one that may not be dropped would be taken.
    pub(super) fn has_room(&self) -> bool {
        self.len() < self.capacity || !self.droppable.0.is_empty() || !self.closing.0.is_empty()
    }

    /// How many were dropped since [`take_dropped`](Self::take_dropped).
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many were dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn take(&mut self, number: u64) -> Option<Event> {
        let lines = [&mut self.droppable, &mut self.durable, &mut self.closing];
        let event = lines.into_iter().find_map(|line| line.take(number))?;
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

/// Events by the number of each, in order.
#[derive(Default)]
struct Line(VecDeque<(u64, Event)>);

impl Line {
    fn oldest(&self) -> Option<u64> {
        self.0.front().map(|(number, _)| *number)
    }

    fn take(&mut self, number: u64) -> Option<Event> {
        let at = match self.oldest()? {
            oldest if oldest == number => 0,
            _ => self.0.binary_search_by_key(&number, |(number, _)| *number).ok()?,
        };
        self.0.remove(at).map(|(_, event)| event)
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
    fn a_flood_of_progress_drops_no_end() {
        let mut events = Events::new(3);
        let end = |run| Event { class: EventClass::Closing, ..progress(run) };
        events.push(end("a")).unwrap();
        for _ in 0..100 {
            events.push(progress("loud")).unwrap();
        }
        events.push(end("b")).unwrap();
        assert_eq!(events.pop().unwrap().class, EventClass::Closing);
        let rest: Vec<_> = std::iter::from_fn(|| events.pop()).map(|event| event.class).collect();
        assert_eq!(rest, [EventClass::Droppable, EventClass::Closing], "in order");
        // Ends alone are bounded too, and what a run puts out goes before them.
        for _ in 0..9 {
            events.push(end("a")).unwrap();
        }
        events.push(progress("a")).unwrap();
        assert_eq!(events.len(), 3);
        for n in 0..3 {
            assert!(events.has_room());
            events.push(delta("a", n)).unwrap();
        }
        events.push(end("a")).unwrap();
        assert!(events.push(delta("a", 4)).is_err() && events.len() == 3);
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
