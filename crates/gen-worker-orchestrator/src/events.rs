//! What a run said while it ran: numbered, bounded, readable from any number on.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::de::IgnoredAny;
use tokio::sync::watch;
use tracing::debug;

/// Most events kept of one run; a long stream of deltas has a few thousand.
const MAX_EVENTS: usize = 8192;

/// Most bytes of events kept of one run.
const MAX_BYTES: usize = 8 << 20;

/// One thing that a run said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunEvent {
    /// Its number within the run, from 1; 0 when it has none.
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
    /// Up to here numbers were never given out, or their events were lost with another process.
    base: u64,
    bytes: usize,
    changed: watch::Sender<()>,
}

impl EventLog {
    pub(crate) fn new() -> Self {
        Self { events: VecDeque::new(), last_id: 0, base: 0, bytes: 0, changed: watch::Sender::new(()) }
    }

    /// A log whose beginning was lost with another process: its numbers go on beyond any that were given out, because
    /// no run says a thousand things a second for as long as there has been a Unix epoch.
    pub(crate) fn resumed(now_ms: u64) -> Self {
        Self { last_id: now_ms, base: now_ms, ..Self::new() }
    }

    /// Takes an event that came from elsewhere. One that would break a stream of text, or is no JSON, is dropped.
    pub(crate) fn forward(&mut self, event_type: &str, payload: Bytes) {
        let named = !event_type.is_empty() && !event_type.chars().any(char::is_control);
        if named && serde_json::from_slice::<IgnoredAny>(&payload).is_ok() {
            self.push(event_type, payload);
        } else {
            debug!("event dropped");
        }
    }

    pub(crate) fn push(&mut self, event_type: &str, payload: impl Into<Bytes>) {
        self.last_id += 1;
        let event = RunEvent { id: self.last_id, event_type: event_type.to_owned(), payload: payload.into() };
        self.bytes += event.payload.len();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.payload.len());
        }
        self.wake();
    }

    /// Tells whoever watches that there is something to read.
    pub(crate) fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn after(&self, id: u64) -> Batch {
        let first_kept = self.last_id - self.events.len() as u64 + 1;
        let seen = id.min(self.last_id);
        let skip = (seen + 1).saturating_sub(first_kept) as usize;
        // How many were lost with another process nobody knows: they count as one.
        let lost = u64::from(seen < self.base);
        Batch {
            dropped: lost + first_kept.saturating_sub(seen.max(self.base) + 1),
            events: self.events.range(skip..).cloned().collect(),
        }
    }

    pub(crate) fn last_id(&self) -> u64 {
        self.last_id
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
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
