//! What must be said to the scheduler, whichever stream is up: results kept until delivered, events bounded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gen_worker_core::{Event, EventClass, RunId, ports::EventSink};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tracing::info;

use crate::{
    config::RuntimeConfig,
    journal::{Journal, JournalError},
    wire::{Message, outbound},
};

/// A run and its attempt: what a result answers and an acknowledgement names.
pub(crate) type Key = (RunId, i64);

struct Held {
    key: Key,
    message: Message,
    /// When it was written to the stream that is up; `None`: it waits to be.
    written: Option<Instant>,
}

struct Queued {
    run_id: Option<RunId>,
    class: EventClass,
    message: Message,
    /// Of a frame of a realtime session: its place among the session's own.
    place: Option<OwnedSemaphorePermit>,
}

/// The pure part: what is sent next, and what may be forgotten.
pub(crate) struct Queue {
    capacity: usize,
    answers: VecDeque<Message>,
    results: BTreeMap<u64, Held>,
    waiting: VecDeque<u64>,
    /// Results that are not in the journal yet.
    held_back: BTreeSet<u64>,
    by_key: HashMap<Key, u64>,
    next_result: u64,
    events: VecDeque<Queued>,
    dropped: u64,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            answers: VecDeque::new(),
            results: BTreeMap::new(),
            waiting: VecDeque::new(),
            held_back: BTreeSet::new(),
            by_key: HashMap::new(),
            next_result: 0,
            events: VecDeque::new(),
            dropped: 0,
        }
    }

    /// Takes a result, in place of an undelivered one of the same attempt.
    pub(crate) fn push_result(&mut self, key: Key, message: Message) {
        let id = self.hold(key, message);
        self.waiting.push_back(id);
    }

    /// Takes a result that may not be sent before it is released.
    pub(crate) fn hold_back(&mut self, key: Key, message: Message) -> u64 {
        let id = self.hold(key, message);
        self.held_back.insert(id);
        id
    }

    fn hold(&mut self, key: Key, message: Message) -> u64 {
        self.forget(&key);
        let id = self.next_result;
        self.next_result += 1;
        self.by_key.insert(key.clone(), id);
        self.results.insert(id, Held { key, message, written: None });
        id
    }

    /// Lets a result that was held back be sent, unless another took its place.
    pub(crate) fn release(&mut self, id: u64) {
        if self.held_back.remove(&id) {
            self.waiting.push_back(id);
        }
    }

    /// Takes an event. When there is no room, the oldest that may be dropped goes, if need be this one.
    ///
    /// # Errors
    /// There is no room, and neither this event nor any queued one may be dropped.
    pub(crate) fn push_event(&mut self, event: Event) -> Result<(), Event> {
        if self.events.len() >= self.capacity {
            if let Some(oldest) = self.events.iter().position(|e| e.class == EventClass::Droppable) {
                self.events.remove(oldest);
                self.dropped += 1;
            } else if event.class == EventClass::Droppable {
                self.dropped += 1;
                return Ok(());
            } else {
                return Err(event);
            }
        }
        self.push_event_unbounded(event);
        Ok(())
    }

    fn push_event_unbounded(&mut self, event: Event) {
        let (run_id, class) = (event.run_id.clone(), event.class);
        self.events.push_back(Queued { run_id, class, message: outbound::event(event), place: None });
    }

    /// The next message, and results before events: a flood of progress delays no result. Only the events of the run
    /// itself go before its result.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Message> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let Some(id) = self.waiting.front().copied() else {
            return self.events.pop_front().map(|e| e.message);
        };
        let result = self.results.get_mut(&id).expect("a waiting result is held");
        let own = |event: &Queued| event.run_id.as_ref() == Some(&result.key.0);
        if let Some(at) = self.events.iter().position(own) {
            return self.events.remove(at).map(|event| event.message);
        }
        self.waiting.pop_front();
        result.written = Some(now);
        Some(result.message.clone())
    }

    pub(crate) fn has_next(&self) -> bool {
        !(self.answers.is_empty() && self.waiting.is_empty() && self.events.is_empty())
    }

    /// Nothing is there to send, nor will be by itself.
    pub(crate) fn is_said(&self) -> bool {
        !self.has_next() && self.held_back.is_empty()
    }

    /// Nothing is held that the scheduler may not have.
    pub(crate) fn is_delivered(&self) -> bool {
        self.is_said() && self.results.is_empty()
    }

    /// Whether an acknowledgement can be about what is held. Without a fence it may be about an earlier run of the same id,
    /// so only what this stream was told counts.
    pub(crate) fn can_be_acknowledged(&self, key: &Key) -> bool {
        let held = self.by_key.get(key).and_then(|id| self.results.get(id));
        key.1 != 0 || held.is_some_and(|held| held.written.is_some())
    }

    /// A new stream: everything still held is sent again, oldest first.
    pub(crate) fn restart(&mut self) {
        self.waiting = self.results.keys().filter(|id| !self.held_back.contains(id)).copied().collect();
        self.results.values_mut().for_each(|held| held.written = None);
    }

    /// The result of this attempt is delivered. Says whether it was held.
    pub(crate) fn forget(&mut self, key: &Key) -> bool {
        let Some(id) = self.by_key.remove(key) else {
            return false;
        };
        self.results.remove(&id);
        self.held_back.remove(&id);
        self.waiting.retain(|waiting| *waiting != id);
        true
    }

    /// Sends the result of this attempt again, if it is still held.
    pub(crate) fn resend(&mut self, key: &Key) -> bool {
        let Some(id) = self.by_key.get(key) else {
            return false;
        };
        if !self.waiting.contains(id) && !self.held_back.contains(id) {
            self.waiting.push_back(*id);
        }
        true
    }

    /// Forgets results that were written to this stream at least `retention` ago, all of which it was healthy, and says
    /// which.
    pub(crate) fn expire(&mut self, now: Instant, retention: Duration) -> Vec<Key> {
        let is_old = |held: &Held| held.written.is_some_and(|at| now.duration_since(at) >= retention);
        let old: Vec<Key> =
            self.results.values().filter(|held| is_old(held)).map(|held| held.key.clone()).collect();
        old.iter().for_each(|key| {
            self.forget(key);
        });
        old
    }

    fn has_room(&self) -> bool {
        self.events.len() < self.capacity || self.events.iter().any(|e| e.class == EventClass::Droppable)
    }
}

/// The queue, shared by jobs that fill it and the stream that empties it. Outlives every stream.
pub(crate) struct Outbox {
    queue: Mutex<Queue>,
    journal: Option<Journal>,
    /// Something can be sent.
    filled: Notify,
    /// An event was sent.
    emptied: Notify,
}

impl Outbox {
    /// One whose results are kept in `WORKER_STATE_DIR`, or end with the process.
    ///
    /// # Errors
    /// The directory cannot be used, or the operating system gives no thread.
    pub(crate) fn open(config: &RuntimeConfig) -> Result<Arc<Self>, JournalError> {
        match &config.state_dir {
            Some(directory) => Self::journaled(config, directory),
            None => Ok(Arc::new(Self::new(config.event_buffer))),
        }
    }

    fn new(event_capacity: usize) -> Self {
        Self::with(Queue::new(event_capacity), None)
    }

    fn with(queue: Queue, journal: Option<Journal>) -> Self {
        Self { queue: Mutex::new(queue), journal, filled: Notify::new(), emptied: Notify::new() }
    }

    /// Starts with what an earlier process did not deliver.
    fn journaled(config: &RuntimeConfig, directory: &Path) -> Result<Arc<Self>, JournalError> {
        let (journal, writer) = Journal::open(directory)?;
        let mut queue = Queue::new(config.event_buffer);
        for (key, message) in writer.undelivered(config.max_message_bytes) {
            queue.push_result(key, message);
        }
        info!(directory = %directory.display(), undelivered = queue.results.len(), "results are kept in a journal");
        let outbox = Arc::new(Self::with(queue, Some(journal)));
        let released = Arc::downgrade(&outbox);
        let release = move |ids: &[u64]| {
            if let Some(outbox) = released.upgrade() {
                outbox.change(|queue| ids.iter().for_each(|id| queue.release(*id)));
            }
        };
        let unusable = |source: io::Error| JournalError::Unusable { directory: directory.to_owned(), source };
        writer.start(release).map_err(unusable)?;
        Ok(outbox)
    }

    /// Takes a run's result. Where there is a journal, it is sent once it is there.
    pub(crate) fn result(&self, key: Key, message: Message) {
        self.change(|queue| match &self.journal {
            None => queue.push_result(key, message),
            Some(journal) => {
                let id = queue.hold_back(key.clone(), message.clone());
                if !journal.keep(id, key, message) {
                    queue.release(id);
                }
            }
        });
    }

    /// Takes an answer to a command.
    pub(crate) fn answer(&self, message: Message) {
        self.change(|queue| queue.answers.push_back(message));
    }

    /// Takes an event that is part of a run's output; waits while there is no room.
    pub(crate) async fn emit_durable(&self, mut event: Event) {
        loop {
            let emptied = self.emptied.notified();
            match self.change(|queue| queue.push_event(event)) {
                Ok(()) => return,
                Err(back) => event = back,
            }
            emptied.await;
        }
    }

    /// Takes the one event that ends a run's output, room or not: there is one a run.
    pub(crate) fn emit_last(&self, event: Event) {
        self.change(|queue| queue.push_event_unbounded(event));
    }

    /// Takes what a realtime session has to say, in its turn. A frame holds its place until it is handed to the stream; the
    /// session's end needs none.
    pub(crate) fn frame(&self, message: Message, place: Option<OwnedSemaphorePermit>) {
        let queued = Queued { run_id: None, class: EventClass::Durable, message, place };
        self.change(|queue| queue.events.push_back(queued));
    }

    /// Forgets every frame: a session ends with its stream, and the next stream's scheduler knows nothing of it.
    pub(crate) fn drop_frames(&self) {
        self.change(|queue| queue.events.retain(|queued| queued.place.is_none()));
    }

    /// Sends the result of an attempt again, if it is still held.
    pub(crate) fn resend(&self, key: &Key) -> bool {
        self.change(|queue| queue.resend(key))
    }

    pub(crate) fn acknowledge(&self, key: &Key) {
        let mut queue = self.queue();
        if queue.can_be_acknowledged(key) && queue.forget(key) {
            self.drop_from_journal([key.clone()]);
        }
    }

    /// The run is started again: what an earlier run of it came to is history.
    pub(crate) fn forget(&self, key: &Key) {
        let mut queue = self.queue();
        if queue.forget(key) {
            self.drop_from_journal([key.clone()]);
        }
    }

    pub(crate) fn restart(&self) {
        self.change(Queue::restart);
    }

    pub(crate) fn expire(&self, retention: Duration) {
        let mut queue = self.queue();
        let expired = queue.expire(Instant::now(), retention);
        self.drop_from_journal(expired);
    }

    /// Called with the queue locked, so that the journal hears of a result's end before it hears of its successor.
    fn drop_from_journal(&self, keys: impl IntoIterator<Item = Key>) {
        if let Some(journal) = &self.journal {
            keys.into_iter().for_each(|key| journal.forget(key));
        }
    }

    /// Ends the journal: what is taken from now on ends with the process.
    pub(crate) fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    pub(crate) fn next(&self) -> Option<Message> {
        let mut queue = self.queue();
        let message = queue.next(Instant::now());
        if queue.has_room() {
            self.emptied.notify_waiters();
        }
        message
    }

    pub(crate) fn has_next(&self) -> bool {
        self.queue().has_next()
    }

    /// Nothing is there to send, nor will be by itself.
    pub(crate) fn is_said(&self) -> bool {
        self.queue().is_said()
    }

    /// Nothing would be lost with this process: all is said, and every result is delivered or in the journal.
    pub(crate) fn can_leave(&self) -> bool {
        let queue = self.queue();
        queue.is_delivered() || (self.journal.is_some() && queue.is_said())
    }

    /// How many events were dropped since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.queue().dropped)
    }

    /// Waits until something may be there to send.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    fn change<R>(&self, change: impl FnOnce(&mut Queue) -> R) -> R {
        let result = change(&mut self.queue());
        self.filled.notify_one();
        result
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSink for Outbox {
    fn emit(&self, event: Event) {
        debug_assert_eq!(event.class, EventClass::Droppable);
        // A droppable event is never handed back.
        let _ = self.change(|queue| queue.push_event(event));
    }
}

#[cfg(test)]
mod tests;
