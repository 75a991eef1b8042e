//! What runs said, wherever they ran, as far as it was heard here: the newest runs, within bounds.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::events::{Batch, EventLog};

/// Most runs of which something is remembered.
const MAX_RUNS: usize = 10_000;

/// Most bytes of events remembered, of all runs together.
const MAX_BYTES: usize = 256 << 20;

/// Most interrupts that wait to be passed on. A run that misses its own ends by its deadline.
const MAX_INTERRUPTS: usize = 1024;

/// The header that says what a word is; without it, it is a run's end.
const TYPE: &str = "Gen-Worker-Event";

/// Something said of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    Event { event_type: String, payload: Bytes },
    End,
}

impl Word {
    pub(super) fn event(event_type: &str, payload: Bytes) -> Self {
        Self::Event { event_type: event_type.to_owned(), payload }
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Self::Event { event_type, .. } = self
            && !event_type.chars().any(char::is_control)
        {
            headers.insert(TYPE, event_type.as_str());
        }
        headers
    }

    pub(super) fn payload(&self) -> Bytes {
        match self {
            Self::Event { payload, .. } => payload.clone(),
            Self::End => Bytes::new(),
        }
    }

    pub(super) fn read(message: async_nats::Message) -> Option<Self> {
        let event_type = message.headers.as_ref().and_then(|headers| headers.get(TYPE));
        match event_type {
            Some(event_type) => Some(Self::event(event_type.as_str(), message.payload)),
            None if message.payload.is_empty() => Some(Self::End),
            None => None,
        }
    }
}

#[derive(Debug, Default)]
struct Logs {
    by_run: HashMap<String, EventLog>,
    /// In the order in which they were begun.
    order: VecDeque<String>,
    bytes: usize,
}

impl Logs {
    fn of(&mut self, run_id: &str) -> &mut EventLog {
        if !self.by_run.contains_key(run_id) {
            while self.by_run.len() >= MAX_RUNS || (self.bytes > MAX_BYTES && !self.order.is_empty()) {
                let oldest = self.order.pop_front().and_then(|oldest| self.by_run.remove(&oldest));
                self.bytes -= oldest.map_or(0, |log| log.bytes());
            }
            self.order.push_back(run_id.to_owned());
        }
        self.by_run.entry(run_id.to_owned()).or_insert_with(EventLog::new)
    }
}

/// All that was heard.
#[derive(Debug, Default)]
pub(super) struct Said {
    logs: Mutex<Logs>,
    interrupts: Mutex<VecDeque<(String, i64)>>,
    interrupted: Notify,
}

impl Said {
    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupts(&self) -> MutexGuard<'_, VecDeque<(String, i64)>> {
        self.interrupts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn hear(&self, run_id: &str, word: Word) {
        let mut logs = self.logs();
        let log = logs.of(run_id);
        let before = log.bytes();
        match word {
            Word::Event { event_type, payload } => log.forward(&event_type, payload),
            Word::End => log.wake(),
        }
        let after = log.bytes();
        logs.bytes = logs.bytes + after - before;
    }

    pub(super) fn watch(&self, run_id: &str) -> watch::Receiver<()> {
        self.logs().of(run_id).watch()
    }

    /// What was heard of a run after an event, and the number of the last.
    pub(super) fn after(&self, run_id: &str, after: u64) -> (Batch, u64) {
        let logs = self.logs();
        match logs.by_run.get(run_id) {
            Some(log) => (log.after(after), log.last_id()),
            None => (EventLog::new().after(after), 0),
        }
    }

    /// Has everybody look who waits for something.
    pub(super) fn wake_all(&self) {
        self.logs().by_run.values().for_each(EventLog::wake);
    }

    pub(super) fn interrupt(&self, run: (String, i64)) {
        let mut interrupts = self.interrupts();
        if interrupts.len() < MAX_INTERRUPTS {
            interrupts.push_back(run);
            self.interrupted.notify_one();
        }
    }

    /// The next run that somebody elsewhere asked to stop.
    pub(super) async fn interrupted(&self) -> (String, i64) {
        loop {
            if let Some(next) = self.interrupts().pop_front() {
                return next;
            }
            self.interrupted.notified().await;
        }
    }
}
