//! What a soak comes to: counts, what was held at the end, and what is wrong with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
};

use gen_worker_orchestrator::{RunEvent, RunState, RunView};
use serde_json::Value;

use crate::world::Measured;

/// Most by which a process's memory may grow between the second and the last quarter of a soak: what the allocator keeps, and what
/// the orchestrator remembers of its last thousand runs.
const MEMORY_ALLOWED: u64 = 48 << 20;

/// Fewer samples than these, two minutes of them, say nothing about growth.
const SAMPLES_NEEDED: usize = 240;

/// Most sockets that a worker may hold when nothing runs: connections that wait to be used again.
const SOCKETS_ALLOWED: usize = 64;

/// How a run ended, and what of it was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Well, and this many bytes are what they must be.
    Right { bytes: u64 },
    /// Badly, as it was asked to.
    FailedAsAsked,
    /// Badly, for a reason that the schedule gave.
    Explained(&'static str),
    /// Otherwise.
    Wrong(String),
}

/// What a run said, event by event.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    attempts: BTreeSet<i64>,
    /// Of the last attempt.
    deltas: Vec<u64>,
    /// What was said twice.
    pub(crate) duplicates: u64,
}

impl Heard {
    pub(crate) fn hear(&mut self, event: &RunEvent) {
        let payload: Value = serde_json::from_slice(&event.payload).unwrap_or_default();
        match event.event_type.as_str() {
            "started" => {
                self.duplicates += u64::from(!self.attempts.insert(payload["attempt"].as_i64().unwrap_or(0)));
                self.deltas.clear();
            }
            "output.delta" => {
                let item = payload["i"].as_u64().unwrap_or(u64::MAX);
                match self.deltas.contains(&item) {
                    true => self.duplicates += 1,
                    false => self.deltas.push(item),
                }
            }
            _ => {}
        }
    }

    /// Whether the last attempt said 0, 1, … up to `n`, in order.
    pub(crate) fn counted_to(&self, n: u32) -> bool {
        self.deltas.iter().copied().eq(0..u64::from(n))
    }

    /// Whether some of that is missing, and the rest in order.
    pub(crate) fn skipped(&self, n: u32) -> bool {
        self.deltas.is_sorted() && self.deltas.len() < n as usize
    }
}

/// The counts of all runs so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) accepted: u64,
    delivered: u64,
    right: u64,
    failed_as_asked: u64,
    explained: BTreeMap<&'static str, u64>,
    pub(crate) duplicates: u64,
    bytes: u64,
    attempts: u64,
    /// What each run came to, to be compared at the end.
    ends: BTreeMap<String, End>,
    wrong: Vec<String>,
}

/// What cannot change once a run has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    state: RunState,
    attempt: i64,
    finished_at_ms: Option<u64>,
}

impl End {
    pub(crate) fn of(view: &RunView) -> Self {
        Self { state: view.state, attempt: view.attempt, finished_at_ms: view.finished_at_ms }
    }
}

impl Tally {
    /// Takes a run that ended.
    pub(crate) fn take(&mut self, view: &RunView, heard: &Heard, verdict: Verdict) {
        self.delivered += 1;
        self.duplicates += heard.duplicates;
        self.attempts += view.attempt.unsigned_abs();
        self.ends.insert(view.run_id.clone(), End::of(view));
        match verdict {
            Verdict::Right { bytes } => {
                self.right += 1;
                self.bytes += bytes;
            }
            Verdict::FailedAsAsked => self.failed_as_asked += 1,
            Verdict::Explained(why) => *self.explained.entry(why).or_default() += 1,
            Verdict::Wrong(what) => self.wrong.push(what),
        }
    }

    /// Compares what is remembered at the end with what was delivered: a run that changed was ended twice.
    pub(crate) fn compare(&mut self, remembered: &[RunView]) {
        let changed = |view: &&RunView| self.ends.get(&view.run_id) != Some(&End::of(view));
        let changed: Vec<_> = remembered.iter().filter(changed).map(|view| view.run_id.clone()).collect();
        self.duplicates += changed.len() as u64;
        self.wrong.extend(changed.iter().map(|run_id| format!("{run_id} is not as it was delivered")));
    }

    /// Keeps what else is wrong.
    pub(crate) fn add_wrong(&mut self, wrong: impl IntoIterator<Item = String>) {
        self.wrong.extend(wrong);
    }

    /// All that is wrong.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let lost = self.accepted - self.delivered;
        let counted = [(lost, "results were not delivered"), (self.duplicates, "things came twice")];
        let counted = counted.into_iter().filter(|(count, _)| *count > 0);
        counted.map(|(count, what)| format!("{count} {what}")).chain(self.wrong.iter().cloned()).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "runs accepted       {}", self.accepted)?;
        writeln!(to, "results delivered   {}, after {} attempts", self.delivered, self.attempts)?;
        writeln!(to, "  right             {}", self.right)?;
        writeln!(to, "  failed as asked   {}", self.failed_as_asked)?;
        for (why, count) in &self.explained {
            writeln!(to, "  {why:<17} {count}")?;
        }
        writeln!(to, "duplicates          {}", self.duplicates)?;
        write!(to, "bytes verified      {}", self.bytes)
    }
}

/// One process over time.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    resident: Vec<u64>,
}

impl Watched {
    pub(crate) fn see(&mut self, measured: &Measured) {
        self.resident.push(measured.resident);
    }

    /// The median of the second quarter and that of the last, in bytes. A process needs the first to fill its caches.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let quarter = self.resident.len() / 4;
        let from = |start: usize| median(self.resident.get(start..start + quarter).unwrap_or_default());
        (from(quarter), from(self.resident.len() - quarter))
    }

    /// Whether memory grew by more than can be explained. A short soak only fills the caches.
    pub(crate) fn grew(&self) -> bool {
        let (before, after) = self.memory();
        self.resident.len() >= SAMPLES_NEEDED && after.saturating_sub(before) > MEMORY_ALLOWED
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

/// What a process still has open when nothing runs and should not, beside what it had at the beginning: files, but for the pins of
/// models in memory and the lock of its own directory, and more sockets than can wait to be used again.
pub(crate) fn open_still(at_first: &Measured, now: &Measured) -> Vec<String> {
    let held = |path: &Path| path.extension().is_some_and(|kind| kind == "pin" || kind == "lock");
    let files = now.files.difference(&at_first.files).filter(|path| !held(path));
    let mut open: Vec<_> = files.map(|path| format!("{} is open", path.display())).collect();
    if now.sockets > at_first.sockets + SOCKETS_ALLOWED {
        open.push(format!("{} sockets are open, {} were", now.sockets, at_first.sockets));
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(event_type: &str, payload: &'static str) -> RunEvent {
        RunEvent { id: 1, event_type: event_type.to_owned(), payload: payload.into() }
    }

    #[test]
    fn what_an_attempt_says_twice_is_counted_and_another_attempt_begins_anew() {
        let mut heard = Heard::default();
        for (event_type, payload) in [
            ("started", r#"{"attempt":1}"#),
            ("output.delta", r#"{"i":0}"#),
            ("started", r#"{"attempt":2}"#),
            ("output.delta", r#"{"i":0}"#),
            ("output.delta", r#"{"i":1}"#),
        ] {
            heard.hear(&event(event_type, payload));
        }
        assert!(heard.counted_to(2) && heard.duplicates == 0);
        heard.hear(&event("output.delta", r#"{"i":1}"#));
        heard.hear(&event("started", r#"{"attempt":2}"#));
        assert_eq!(heard.duplicates, 2);
    }

    #[test]
    fn a_run_that_ends_twice_or_not_at_all_is_wrong() {
        let view: RunView = serde_json::from_value(serde_json::json!({
            "run_id": "r", "function": "f", "state": "succeeded", "attempt": 1, "created_at_ms": 1,
        }))
        .unwrap();
        let mut tally = Tally { accepted: 1, ..Tally::default() };
        assert_eq!(tally.wrong(), ["1 results were not delivered"]);
        tally.take(&view, &Heard::default(), Verdict::Right { bytes: 3 });
        tally.compare(std::slice::from_ref(&view));
        assert_eq!(tally.wrong(), [""; 0]);
        tally.compare(&[RunView { attempt: 2, ..view }]);
        assert_eq!(tally.wrong(), ["1 things came twice", "r is not as it was delivered"]);
    }

    #[test]
    fn memory_is_compared_once_it_is_warm() {
        let mut watched = Watched::default();
        for resident in [1, 9, 50, 50, 60, 70, 90, 90] {
            watched.see(&Measured { resident, ..Measured::default() });
        }
        assert_eq!(watched.memory(), (50, 90));
    }

    #[test]
    fn memory_that_grows_for_long_is_told() {
        let growing = |samples: u64| {
            let mut watched = Watched::default();
            (0..samples).for_each(|n| {
                watched.see(&Measured { resident: n * (MEMORY_ALLOWED / 10), ..Measured::default() });
            });
            watched.grew()
        };
        assert_eq!((growing(100), growing(SAMPLES_NEEDED as u64)), (false, true));
    }

    #[test]
    fn a_file_that_stays_open_is_told() {
        let open = |files: &[&str], sockets| Measured {
            files: files.iter().map(Into::into).collect(),
            sockets,
            resident: 0,
        };
        let first = open(&["/log"], 9);
        assert_eq!(open_still(&first, &open(&["/log", "/m/x.pin"], 9)), [""; 0]);
        let left = open_still(&first, &open(&["/log", "/runs/x"], 10 + SOCKETS_ALLOWED));
        assert_eq!(left, ["/runs/x is open", "74 sockets are open, 9 were"]);
    }
}
