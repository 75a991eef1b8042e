//! What runs said, wherever they ran, as far as it was heard here, within bounds: what has ended is forgotten first, then
//! what waits, and what somebody is at last.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::{
    events::{BLOCK, Batch, EventLog, RunEvent},
    peers::Presence,
};

/// Most runs of which something is remembered.
const MAX_RUNS: usize = 10_000;

/// Most bytes of events remembered, of all runs together.
const MAX_BYTES: usize = 256 << 20;

/// Most interrupts, and words of other orchestrators, that wait to be passed on. A run that misses its own ends by its
/// deadline; an orchestrator says the same again a second later.
const MAX_WAITING: usize = 1024;

/// The header that says what a word is; without it, it is a run's end.
const TYPE: &str = "Gen-Worker-Event";

/// The header with the event's number.
const NUMBER: &str = "Gen-Worker-Number";

/// The header of [`QUEUED`] and [`STARTED`], and of an end that lets another begin, with the subject that the run was published on. No caller sees it.
pub(super) const LANE: &str = "Gen-Worker-Lane";

/// Said of a run that was taken.
pub(super) const QUEUED: &str = "queued";

/// Said of a run that a worker was given, with the attempt.
pub(super) const STARTED: &str = "started";

/// The number of what is said of a run by whoever wrote a revision of its record, from 1 on; 0: of that step itself. It is the same
/// wherever it is heard, and greater than any of an earlier step. `None`: nobody says so much.
pub(super) fn number(revision: u64, count: u64) -> Option<u64> {
    (count < BLOCK).then(|| revision.saturating_mul(BLOCK).saturating_add(count))
}

/// Said of an attempt that failed, if another follows.
pub(super) const FAILED: &str = "attempt_failed";

/// Something said of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    Event(RunEvent),
    End,
}

impl Word {
    pub(super) fn event(id: u64, event_type: &str, payload: Bytes) -> Self {
        Self::Event(RunEvent { id, event_type: event_type.to_owned(), payload })
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Self::Event(RunEvent { id, event_type, .. }) = self {
            headers.insert(TYPE, event_type.as_str());
            headers.insert(NUMBER, id.to_string().as_str());
        }
        headers
    }

    pub(super) fn payload(&self) -> Bytes {
        match self {
            Self::Event(event) => event.payload.clone(),
            Self::End => Bytes::new(),
        }
    }

    /// The attempt that a worker was given, if it is this that is said.
    pub(super) fn started(&self) -> Option<i64> {
        match self {
            Self::Event(RunEvent { event_type, payload, .. }) if event_type == STARTED => {
                serde_json::from_slice::<serde_json::Value>(payload).ok()?["attempt"].as_i64()
            }
            _ => None,
        }
    }

    /// Whether whoever says it has changed the run's record.
    pub(super) fn is_of_step(&self) -> bool {
        match self {
            Self::Event(event) => [STARTED, FAILED].contains(&event.event_type.as_str()),
            Self::End => true,
        }
    }

    pub(super) fn read(message: async_nats::Message) -> Option<Self> {
        let header = |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
        match header(TYPE) {
            Some(event_type) => {
                Some(Self::event(header(NUMBER)?.parse().ok()?, &event_type, message.payload))
            }
            None => message.payload.is_empty().then_some(Self::End),
        }
    }
}

/// How far a run has come, as far as was heard: the first are forgotten first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Ended,
    Waiting,
    /// A worker has it, or somebody here wants to hear of it.
    UnderWay,
}

#[derive(Debug)]
struct Log {
    events: EventLog,
    /// Its place among those that are forgotten, which grows from run to run.
    place: (Rank, u64),
}

#[derive(Debug)]
struct Logs {
    by_run: HashMap<String, Log>,
    by_place: BTreeMap<(Rank, u64), String>,
    next: u64,
    bytes: usize,
    max_runs: usize,
}

impl Logs {
    fn new(max_runs: usize) -> Self {
        Self { by_run: HashMap::new(), by_place: BTreeMap::new(), next: 0, bytes: 0, max_runs }
    }

    /// Changes what is known of a run, and how far it has come, as that was before.
    fn change<T>(
        &mut self,
        run_id: &str,
        new: impl FnOnce() -> EventLog,
        rank: impl FnOnce(Rank) -> Rank,
        change: impl FnOnce(&mut EventLog) -> T,
    ) -> T {
        let mut log = self.by_run.remove(run_id).unwrap_or_else(|| {
            self.next += 1;
            Log { events: new(), place: (Rank::Waiting, self.next) }
        });
        self.by_place.remove(&log.place);
        self.bytes -= log.events.bytes();
        self.make_room();
        let done = change(&mut log.events);
        self.bytes += log.events.bytes();
        log.place.0 = rank(log.place.0);
        self.by_place.insert(log.place, run_id.to_owned());
        self.by_run.insert(run_id.to_owned(), log);
        done
    }

    fn make_room(&mut self) {
        while self.by_run.len() >= self.max_runs || self.bytes > MAX_BYTES {
            let Some((_, run_id)) = self.by_place.pop_first() else { return };
            self.bytes -= self.by_run.remove(&run_id).map_or(0, |log| log.events.bytes());
        }
    }

    fn hear(&mut self, run_id: &str, word: Word) -> bool {
        match word {
            Word::End => {
                self.change(run_id, EventLog::new, |_| Rank::Ended, |log| log.wake());
                true
            }
            Word::Event(event) => {
                let started = event.event_type == STARTED;
                let rank = |before| if started { Rank::UnderWay } else { before };
                // Of any other the beginning was not heard, or was forgotten.
                let first = event.event_type == QUEUED;
                let before = event.id - 1;
                let new = || if first { EventLog::new() } else { EventLog::resumed(before) };
                self.change(run_id, new, rank, |log| log.hear(event))
            }
        }
    }

    fn watch(&mut self, run_id: &str) -> watch::Receiver<()> {
        let rank = |before| if before == Rank::Waiting { Rank::UnderWay } else { before };
        self.change(run_id, EventLog::new, rank, |log| log.watch())
    }
}

impl Default for Logs {
    fn default() -> Self {
        Self::new(MAX_RUNS)
    }
}

/// What was heard and is to be passed on, one after another.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    waiting: Mutex<VecDeque<T>>,
    more: Notify,
}

impl<T> Default for Inbox<T> {
    fn default() -> Self {
        Self { waiting: Mutex::default(), more: Notify::new() }
    }
}

impl<T> Inbox<T> {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, item: T) {
        let mut waiting = self.waiting();
        if waiting.len() < MAX_WAITING {
            waiting.push_back(item);
            self.more.notify_one();
        }
    }

    pub(super) async fn next(&self) -> T {
        loop {
            if let Some(next) = self.waiting().pop_front() {
                return next;
            }
            self.more.notified().await;
        }
    }
}

/// All that was heard.
#[derive(Debug, Default)]
pub(super) struct Said {
    logs: Mutex<Logs>,
    /// Wakes whoever looks at a run that has ended and of which nothing is remembered.
    over: watch::Sender<()>,
    /// The runs, and their attempts, that somebody elsewhere asked to stop.
    pub(super) interrupts: Inbox<(String, i64)>,
    /// What other orchestrators said of themselves.
    pub(super) presences: Inbox<Presence>,
}

impl Said {
    fn logs(&self) -> MutexGuard<'_, Logs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears something; false: it was heard before, as by whoever says it.
    pub(super) fn hear(&self, run_id: &str, word: Word) -> bool {
        self.logs().hear(run_id, word)
    }

    /// A signal that there is something to read. Looking at a run that has ended makes nobody forget another.
    pub(super) fn watch(&self, run_id: &str, has_ended: bool) -> watch::Receiver<()> {
        let mut logs = self.logs();
        match logs.by_run.get(run_id) {
            Some(log) if has_ended => log.events.watch(),
            None if has_ended => self.over.subscribe(),
            _ => logs.watch(run_id),
        }
    }

    /// What was heard of a run after an event, and whether its end was.
    pub(super) fn after(&self, run_id: &str, after: u64) -> (Batch, bool) {
        let logs = self.logs();
        match logs.by_run.get(run_id) {
            Some(log) => (log.events.after(after), log.place.0 == Rank::Ended),
            None => (EventLog::new().after(after), false),
        }
    }

    /// Whether a run's end was heard.
    pub(super) fn is_over(&self, run_id: &str) -> bool {
        self.logs().by_run.get(run_id).is_some_and(|log| log.place.0 == Rank::Ended)
    }

    /// Has everybody look who waits for something.
    pub(super) fn wake_all(&self) {
        self.logs().by_run.values().for_each(|log| log.events.wake());
        self.over.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(id: u64, event_type: &str) -> Word {
        Word::event(id, event_type, Bytes::from_static(b"{}"))
    }

    #[test]
    fn runs_under_way_outlive_newer_ones_that_wait_or_have_ended() {
        let mut logs = Logs::new(3);
        for run_id in ["old", "watched", "ended"] {
            logs.hear(run_id, said(1, QUEUED));
        }
        logs.hear("old", said(2, STARTED));
        let watched = logs.watch("watched");
        logs.hear("ended", Word::End);
        for number in 0..100 {
            logs.hear(&format!("new{number}"), said(1, QUEUED));
        }
        let mut known: Vec<_> = logs.by_run.keys().map(String::as_str).collect();
        known.sort_unstable();
        assert_eq!(known, ["new99", "old", "watched"]);
        assert!(watched.has_changed().is_ok());
        assert_eq!(logs.bytes, 8);
        logs.hear("old", Word::End);
        logs.hear("newer", said(1, QUEUED));
        assert!(!logs.by_run.contains_key("old") && logs.by_place.len() == 3);
    }

    #[test]
    fn whoever_looks_at_old_results_makes_nobody_forget_what_runs() {
        let heard = Said::default();
        for number in 0..MAX_RUNS {
            heard.hear(&format!("live{number}"), said(1, QUEUED));
            heard.hear(&format!("live{number}"), said(2, STARTED));
        }
        let mut looking: Vec<_> = (0..9).map(|number| heard.watch(&format!("old{number}"), true)).collect();
        for number in 0..MAX_RUNS {
            assert_eq!(heard.after(&format!("live{number}"), 0).0.events.len(), 2);
        }
        heard.wake_all();
        assert!(looking.iter_mut().all(|looking| looking.has_changed().unwrap()));
    }

    #[test]
    fn what_one_says_oneself_is_no_news() {
        let heard = Said::default();
        assert!(heard.hear("r", said(7, QUEUED)));
        assert!(!heard.hear("r", said(7, QUEUED)));
    }

    #[test]
    fn a_number_says_who_said_it_and_is_the_same_for_all() {
        assert!(number(7, BLOCK - 1).unwrap() < number(8, 0).unwrap());
        assert_eq!(number(7, BLOCK), None);
        let mut logs = Logs::new(3);
        let third = number(7, 3).unwrap();
        logs.hear("r", said(third, "job.log"));
        let batch = logs.by_run["r"].events.after(0);
        assert_eq!((batch.dropped, batch.events[0].id), (1, third));
    }
}
