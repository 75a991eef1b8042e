//! Results, each kept until it is delivered.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::BuildHasher,
    sync::Arc,
    time::{Duration, Instant},
};

use gen_worker_core::metric::Histogram;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::Key;
use crate::{job::Line, wire::Message};

/// What keeping a result costs beside its bytes, about: its key twice, its places in the tables, and the message around the
/// bytes. So that empty results are bounded too.
const KEPT_BYTES: usize = 512;

struct Held {
    key: Key,
    message: Message,
    /// When it was taken.
    since: Instant,
    cost: usize,
    state: State,
    /// It is the refusal of a run that may be sent again.
    is_refusal: bool,
    /// It was written to some stream.
    was_written: bool,
    /// What is logged once it is delivered; `None`: nothing, or it was.
    line: Option<Box<Line>>,
    /// Its delivery was measured: on one stream it is delivered when it is written, on the next when it is acknowledged.
    is_measured: bool,
}

impl Held {
    /// The scheduler has it, as far as this stream goes. Measured the first time; the line that is due.
    fn delivered(&mut self, now: Instant, delivery: &Histogram) -> Option<Told> {
        if !std::mem::replace(&mut self.is_measured, true) {
            delivery.observe(now.saturating_duration_since(self.since));
        }
        self.line.take().map(|line| (line, Some(now)))
    }
}

/// A line of the log that is due, and when the result was delivered, if that is known.
pub(super) type Told = (Box<Line>, Option<Instant>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The journal does not have it yet.
    HeldBack,
    /// It is to be written to the stream that is up, or the next.
    Waiting,
    /// It was written to the stream that is up.
    Written,
}

/// What there is of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub count: usize,
    pub bytes: usize,
}

impl Amount {
    fn add(&mut self, cost: usize) {
        self.count += 1;
        self.bytes += cost;
    }

    fn remove(&mut self, cost: usize) {
        self.count -= 1;
        self.bytes -= cost;
    }
}

/// The results that are held, by the number of each, which says their order.
#[derive(Default)]
pub(super) struct Results {
    held: BTreeMap<u64, Held>,
    /// The number of each, found by its key, which stands with the result alone: a table of tens of thousands that holds keys too is
    /// in no cache.
    by_key: HashTable<u64>,
    hasher: DefaultHashBuilder,
    next: u64,
    /// What waits, in its order, and numbers of some that do no more.
    waiting: VecDeque<u64>,
    /// What was written, in its order and when, and numbers of some that are gone. Empty where acknowledgements come: time
    /// says nothing there.
    written: VecDeque<(Instant, u64)>,
    acknowledged: bool,
    /// What has a line that was not due when it was taken, in its order and when, and numbers of some that have none any more.
    lined: VecDeque<(Instant, u64)>,
    /// To be logged by whoever has let go of the queue: the log may wait for a disk or a pipe.
    pub told: Vec<Told>,
    /// How long it took to deliver each result, the first time.
    pub delivery: Arc<Histogram>,
    all: Amount,
    held_back: Amount,
    unwritten: Amount,
}

impl Results {
    /// Takes a result, in place of an undelivered one of the same attempt.
    pub(super) fn push(&mut self, key: Key, message: Message, now: Instant) {
        let number = self.hold_back(key, message, now);
        self.release(number);
    }

    /// Takes a result that may not be sent before it is released.
    pub(super) fn hold_back(&mut self, key: Key, message: Message, now: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        let cost = message.len() + KEPT_BYTES;
        if let Some(replaced) = self.name(&key, number) {
            self.let_go(replaced);
        }
        self.held.insert(
            number,
            Held {
                key,
                message,
                since: now,
                cost,
                state: State::HeldBack,
                is_refusal: false,
                was_written: false,
                line: None,
                is_measured: false,
            },
        );
        self.all.add(cost);
        self.held_back.add(cost);
        number
    }

    /// Lets a result that was held back be sent, unless another took its place.
    pub(super) fn release(&mut self, number: u64) {
        self.wait(number, State::HeldBack);
    }

    /// Logs this about a result once it is delivered, or known not to be.
    pub(super) fn tell_of(&mut self, number: u64, line: Box<Line>, now: Instant) {
        match self.held.get_mut(&number) {
            Some(held) => {
                held.line = Some(line);
                self.lined.push_back((now, number));
            }
            None => self.told.push((line, None)),
        }
    }

    /// Logs without its delivery what was taken at least so long ago.
    pub(super) fn tell_late(&mut self, now: Instant, after: Duration) {
        while let Some((_, number)) =
            self.lined.pop_front_if(|(since, _)| now.saturating_duration_since(*since) >= after)
        {
            let line = self.held.get_mut(&number).and_then(|held| held.line.take());
            self.told.extend(line.map(|line| (line, None)));
        }
    }

    /// What is held of this attempt is no answer to a second try.
    pub(super) fn mark_refusal(&mut self, key: &Key) {
        if let Some(held) = self.number(key).and_then(|number| self.held.get_mut(&number)) {
            held.is_refusal = true;
        }
    }

    /// Whether what this attempt came to is held.
    pub(super) fn has_outcome(&self, key: &Key) -> bool {
        self.get(key).is_some_and(|held| !held.is_refusal)
    }

    /// Sends the result of this attempt again, if it is held.
    pub(super) fn resend(&mut self, key: &Key) {
        if let Some(number) = self.number(key) {
            self.wait(number, State::Written);
        }
    }

    /// The result that is to be sent next.
    pub(super) fn due(&mut self) -> Option<&Key> {
        while let Some(number) = self.waiting.front() {
            let is_due = |held: &Held| held.state == State::Waiting;
            if self.held.get(number).is_some_and(is_due) {
                break;
            }
            self.waiting.pop_front();
        }
        self.waiting.front().map(|number| &self.held[number].key)
    }

    /// Sends the result that is due.
    pub(super) fn write(&mut self, now: Instant) -> Option<Message> {
        self.due()?;
        let number = self.waiting.pop_front()?;
        let held = self.held.get_mut(&number)?;
        held.state = State::Written;
        held.was_written = true;
        self.unwritten.remove(held.cost);
        if !self.acknowledged {
            self.written.push_back((now, number));
            self.told.extend(held.delivered(now, &self.delivery));
        }
        Some(held.message.clone())
    }

    /// The scheduler of this stream says when it has a result for good: nothing else makes it delivered.
    pub(super) fn await_acknowledgements(&mut self) {
        self.acknowledged = true;
        self.written.clear();
    }

    /// Whether it does.
    pub(super) fn are_acknowledged(&self) -> bool {
        self.acknowledged
    }

    /// A new stream: everything that may be sent is sent again, oldest first.
    pub(super) fn restart(&mut self) {
        self.acknowledged = false;
        self.written.clear();
        self.waiting.clear();
        for (number, held) in &mut self.held {
            match held.state {
                State::HeldBack => continue,
                State::Waiting => {}
                State::Written => self.unwritten.add(held.cost),
            }
            held.state = State::Waiting;
            self.waiting.push_back(*number);
        }
    }

    /// The scheduler has the result of this attempt for good. Says whether it was held.
    pub(super) fn acknowledge(&mut self, key: &Key, now: Instant) -> bool {
        let Some(number) = self.number(key) else { return false };
        if let Some(held) = self.held.get_mut(&number).filter(|_| self.acknowledged) {
            self.told.extend(held.delivered(now, &self.delivery));
        }
        self.remove(number).is_some()
    }

    /// The result of this attempt is history. Says whether it was held.
    pub(super) fn forget(&mut self, key: &Key) -> bool {
        let number = self.number(key);
        number.and_then(|number| self.remove(number)).is_some()
    }

    /// Forgets what was written at least `retention` ago, and says what; nothing where acknowledgements come.
    pub(super) fn expire(&mut self, now: Instant, retention: Duration) -> Vec<Key> {
        let is_old = |written: &(Instant, u64)| now.duration_since(written.0) >= retention;
        let mut old = Vec::new();
        while self.written.front().is_some_and(is_old) {
            old.extend(self.forget_oldest_written());
        }
        old
    }

    /// Forgets what was written first until the rest is within this many bytes, and says what; nothing where
    /// acknowledgements come.
    pub(super) fn shed(&mut self, max_bytes: usize) -> Vec<Key> {
        let mut shed = Vec::new();
        while self.all.bytes > max_bytes && !self.written.is_empty() {
            shed.extend(self.forget_oldest_written());
        }
        shed
    }

    /// Whether the stream that is up was told this result.
    pub(super) fn is_written(&self, key: &Key) -> bool {
        self.get(key).is_some_and(|held| held.state == State::Written)
    }

    /// Whether any stream was told this result.
    pub(super) fn was_written(&self, key: &Key) -> bool {
        self.get(key).is_some_and(|held| held.was_written)
    }

    /// When the oldest that is held was taken.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.held.values().next().map(|held| held.since)
    }

    pub(super) fn all(&self) -> Amount {
        self.all
    }

    /// What is not in the journal yet.
    pub(super) fn held_back(&self) -> Amount {
        self.held_back
    }

    /// What waits for the stream.
    pub(super) fn unwritten(&self) -> Amount {
        self.unwritten
    }

    fn get(&self, key: &Key) -> Option<&Held> {
        self.number(key).map(|number| &self.held[&number])
    }

    fn number(&self, key: &Key) -> Option<u64> {
        let is_its = |number: &u64| self.held[number].key == *key;
        self.by_key.find(self.hasher.hash_one(key), is_its).copied()
    }

    /// Names a number by its key; returns the one that had the name, which is still held.
    fn name(&mut self, key: &Key, number: u64) -> Option<u64> {
        let Self { held, by_key, hasher, .. } = self;
        let hash = hasher.hash_one(key);
        if let Some(named) = by_key.find_mut(hash, |named| held[named].key == *key) {
            return Some(std::mem::replace(named, number));
        }
        by_key.insert_unique(hash, number, |named| hasher.hash_one(&held[named].key));
        None
    }

    /// Lets a result wait for its turn if this is its state.
    fn wait(&mut self, number: u64, from: State) {
        let Some(held) = self.held.get_mut(&number).filter(|held| held.state == from) else {
            return;
        };
        if from == State::HeldBack {
            self.held_back.remove(held.cost);
        }
        held.state = State::Waiting;
        self.unwritten.add(held.cost);
        self.waiting.push_back(number);
    }

    fn forget_oldest_written(&mut self) -> Option<Key> {
        let (_, number) = self.written.pop_front()?;
        // One that was asked for again since waits for its turn.
        let is_written = self.held.get(&number)?.state == State::Written;
        if is_written { self.remove(number) } else { None }
    }

    fn remove(&mut self, number: u64) -> Option<Key> {
        let key = self.let_go(number)?;
        if let Ok(named) = self.by_key.find_entry(self.hasher.hash_one(&key), |named| *named == number) {
            named.remove();
        }
        Some(key)
    }

    /// Forgets a result but for its key.
    fn let_go(&mut self, number: u64) -> Option<Key> {
        let held = self.held.remove(&number)?;
        self.all.remove(held.cost);
        match held.state {
            State::HeldBack => self.held_back.remove(held.cost),
            State::Waiting => self.unwritten.remove(held.cost),
            State::Written => {}
        }
        self.told.extend(held.line.map(|line| (line, None)));
        Some(held.key)
    }
}
