//! What a run said while it ran: numbered, bounded, readable from any number on.

use std::{collections::VecDeque, ops::RangeInclusive};

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tracing::debug;

/// Most events kept of one run; a long stream of deltas has a few thousand.
const MAX_EVENTS: usize = 8192;

/// Most bytes of events kept of one run.
const MAX_BYTES: usize = 8 << 20;

/// Most gaps remembered of one run, the latest: there is one for each time that something was not heard.
const MAX_GAPS: usize = 64;

/// Where several processes give out the numbers of a run, each has a block of so many to itself, and begins at 1 in it.
#[cfg(feature = "nats")]
pub(crate) const BLOCK: u64 = 1 << 20;

/// One thing that a run said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEvent {
    /// Its number within the run, which grows from event to event and may skip some; 0 when it has none.
    pub id: u64,
    /// Its type, such as `job.progress`.
    pub event_type: String,
    /// Its payload: one JSON value.
    pub payload: Bytes,
}

/// What there is after a number.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Events that were asked for and are no longer kept.
    pub(crate) dropped: u64,
    pub(crate) events: Vec<RunEvent>,
}

/// The events of one run. When it is full the oldest go.
#[derive(Debug)]
pub(crate) struct EventLog {
    events: VecDeque<RunEvent>,
    last_id: u64,
    /// The numbers of what was said and is not here, in their order.
    gaps: VecDeque<RangeInclusive<u64>>,
    bytes: usize,
    changed: watch::Sender<()>,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self {
            events: VecDeque::new(),
            last_id: 0,
            gaps: VecDeque::new(),
            bytes: 0,
            changed: watch::Sender::new(()),
        }
    }

    /// A log whose beginning is not known, up to a number. How much that was nobody knows: it counts as one event.
    ///
    /// Where the numbers were lost as well, the time in milliseconds is beyond any that was given out, because no run says a
    /// thousand things a second for as long as there has been a Unix epoch.
    pub(crate) fn resumed(last_id: u64) -> Self {
        Self { last_id, gaps: [last_id..=last_id].into(), ..Self::new() }
    }

    /// Takes an event that came from elsewhere, if it [may be told](may_be_told).
    pub(crate) fn forward(&mut self, event_type: &str, payload: Bytes) {
        if may_be_told(event_type, &payload) {
            self.push(event_type, payload);
        }
    }

    pub(crate) fn push(&mut self, event_type: &str, payload: impl Into<Bytes>) {
        self.add(RunEvent {
            id: self.last_id + 1,
            event_type: event_type.to_owned(),
            payload: payload.into(),
        });
    }

    /// Takes an event that another process has numbered. One that comes after a later one is dropped: whoever said it
    /// no longer had the run.
    #[cfg(feature = "nats")]
    pub(crate) fn hear(&mut self, event: RunEvent) -> bool {
        if event.id <= self.last_id {
            return false;
        }
        let first = (event.id / BLOCK * BLOCK).max(self.last_id) + 1;
        if first < event.id {
            self.gaps.push_back(first..=event.id - 1);
        }
        self.add(event);
        true
    }

    fn add(&mut self, event: RunEvent) {
        self.last_id = event.id;
        self.bytes += event.payload.len();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.payload.len();
            self.miss_oldest(oldest.id);
        }
        self.gaps.drain(..self.gaps.len().saturating_sub(MAX_GAPS));
        self.wake();
    }

    /// Takes note that the oldest event is not kept any more.
    fn miss_oldest(&mut self, id: u64) {
        let before = self.gaps.partition_point(|gap| *gap.end() < id);
        match before.checked_sub(1).and_then(|last| self.gaps.get_mut(last)) {
            Some(last) if last.end() + 1 == id => *last = *last.start()..=id,
            _ => self.gaps.insert(before, id..=id),
        }
    }

    /// Tells whoever watches that there is something to read.
    pub(crate) fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn after(&self, id: u64) -> Batch {
        let missing = self.gaps.iter().filter(|gap| *gap.end() > id);
        let seen = self.events.partition_point(|event| event.id <= id);
        Batch {
            dropped: missing.map(|gap| gap.end() - id.max(gap.start().saturating_sub(1))).sum(),
            events: self.events.range(seen..).cloned().collect(),
        }
    }

    pub(crate) fn last_id(&self) -> u64 {
        self.last_id
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Whether an event from elsewhere is JSON, and would not break a stream of text.
pub(crate) fn may_be_told(event_type: &str, payload: &[u8]) -> bool {
    let named = !event_type.is_empty() && !event_type.chars().any(char::is_control);
    let sound = named && serde_json::from_slice::<IgnoredAny>(payload).is_ok();
    if !sound {
        debug!("event dropped");
    }
    sound
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(batch: &Batch) -> Vec<u64> {
        batch.events.iter().map(|event| event.id).collect()
    }

    #[test]
    fn is_read_from_any_number_on() {
        let mut log = EventLog::new();
        for _ in 0..3 {
            log.push("e", "{}");
        }
        assert_eq!(ids(&log.after(0)), [1, 2, 3]);
        assert_eq!(ids(&log.after(2)), [3]);
        assert!(ids(&log.after(99)).is_empty());
    }

    #[test]
    fn a_full_log_says_how_much_is_gone() {
        let mut log = EventLog::new();
        for _ in 0..MAX_EVENTS + 5 {
            log.push("e", "{}");
        }
        let batch = log.after(2);
        assert_eq!((batch.dropped, batch.events.len()), (3, MAX_EVENTS));
        log.push("big", vec![b' '; MAX_BYTES + 1]);
        assert_eq!((log.after(0).events.len(), log.bytes()), (0, 0));
        assert_eq!(log.after(0).dropped, MAX_EVENTS as u64 + 6);
    }

    #[test]
    fn a_resumed_log_goes_on_beyond_what_was_seen() {
        let mut log = EventLog::resumed(1_000_000);
        assert_eq!((log.after(7).dropped, log.after(1_000_000).dropped), (1, 0));
        log.push("e", "{}");
        assert_eq!((ids(&log.after(7)), log.after(7).dropped), (vec![1_000_001], 1));
        assert_eq!(ids(&log.after(1_000_000)), [1_000_001]);
    }

    #[cfg(feature = "nats")]
    #[test]
    fn what_others_number_leaves_gaps_that_are_counted() {
        let said = |id| RunEvent { id, event_type: "e".to_owned(), payload: Bytes::from_static(b"{}") };
        let mut log = EventLog::new();
        // The first of one block, the third of another, the fifth of that; then one that comes too late.
        for id in [BLOCK + 1, 5 * BLOCK + 3, 5 * BLOCK + 5, 5 * BLOCK + 4] {
            log.hear(said(id));
        }
        assert_eq!(
            (ids(&log.after(0)), log.after(0).dropped),
            (vec![BLOCK + 1, 5 * BLOCK + 3, 5 * BLOCK + 5], 3)
        );
        assert_eq!(
            (ids(&log.after(5 * BLOCK + 3)), log.after(5 * BLOCK + 3).dropped),
            (vec![5 * BLOCK + 5], 1)
        );
        assert_eq!(log.after(5 * BLOCK + 1).dropped, 2);
        let mut log = EventLog::new();
        for number in 1..=MAX_EVENTS as u64 + 2 {
            log.hear(said(9 * BLOCK + 2 * number));
        }
        // Two of the oldest, what was between them, and as many gaps as are remembered.
        assert_eq!(log.after(0).events.len(), MAX_EVENTS);
        assert_eq!(log.gaps.len(), MAX_GAPS);
    }

    #[test]
    fn what_would_break_the_stream_is_dropped() {
        let mut log = EventLog::new();
        log.forward("a\nb", Bytes::from_static(b"{}"));
        log.forward("a", Bytes::from_static(b"{"));
        assert_eq!(log.last_id(), 0);
        log.forward("a", Bytes::from_static(b"{}"));
        assert_eq!(log.last_id(), 1);
    }
}
