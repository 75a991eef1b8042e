//! Records as this process wrote them last, so that whoever asks a moment later is not answered by the servers. Decisions are
//! not made of them: what is decided is written with a revision, and read where it is refused.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::records::Held;

/// How long a run that has not ended is believed to stand as it did. Others say what they do with it, which may be lost.
const FRESH: Duration = Duration::from_secs(1);

/// How long one that has ended is: nothing changes any more, but the servers forget it some time.
const OVER: Duration = Duration::from_secs(60);

/// Most records, and most bytes of them as they are stored. What was written first goes first.
const MAX_RUNS: usize = 10_000;
const MAX_BYTES: usize = 32 << 20;

#[derive(Debug)]
struct Kept {
    held: Held,
    output: Bytes,
    size: usize,
    at: Instant,
}

impl Kept {
    fn is_good(&self, is_over: bool, now: Instant) -> bool {
        let has_ended = self.held.entry.record.has_ended();
        let lasts = if has_ended { OVER } else { FRESH };
        (has_ended || !is_over) && now < self.at + lasts
    }
}

#[derive(Debug, Default)]
struct Runs {
    by_id: HashMap<String, Kept>,
    /// What was kept, in that order, by revision; some of it is gone.
    order: VecDeque<(String, u64)>,
    bytes: usize,
}

impl Runs {
    fn remove(&mut self, run_id: &str) {
        self.bytes -= self.by_id.remove(run_id).map_or(0, |gone| gone.size);
    }
}

#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Runs>);

impl Recent {
    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps how a run stands, with the output that is behind its entry, and how large both are together.
    pub(super) fn keep(&self, held: &Held, output: Bytes, size: usize, now: Instant) {
        let run_id = &held.entry.record.run_id;
        let mut runs = self.runs();
        if runs.by_id.get(run_id).is_some_and(|kept| kept.held.revision > held.revision) {
            return;
        }
        runs.remove(run_id);
        runs.order.push_back((run_id.clone(), held.revision));
        runs.bytes += size;
        runs.by_id.insert(run_id.clone(), Kept { held: held.clone(), output, size, at: now });
        while runs.order.len() > MAX_RUNS || runs.bytes > MAX_BYTES {
            let Some((oldest, revision)) = runs.order.pop_front() else { break };
            if runs.by_id.get(&oldest).is_some_and(|kept| kept.held.revision == revision) {
                runs.remove(&oldest);
            }
        }
    }

    /// How a run stands, if that is known here. `is_over`: it is known to have ended.
    pub(super) fn get(&self, run_id: &str, is_over: bool, now: Instant) -> Option<(Held, Bytes)> {
        let runs = self.runs();
        let kept = runs.by_id.get(run_id).filter(|kept| kept.is_good(is_over, now))?;
        Some((kept.held.clone(), kept.output.clone()))
    }

    /// Somebody else has made a step.
    pub(super) fn forget(&self, run_id: &str) {
        self.runs().remove(run_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        queue::{jetstream::records::Entry, record::Record},
        run::RunRequest,
    };

    fn held(run_id: &str, revision: u64) -> Held {
        let record = Record::new(run_id, RunRequest::of("f"), 0);
        Held { entry: Entry::new(record, false, 0), revision }
    }

    fn ended(run_id: &str, revision: u64) -> Held {
        let mut held = held(run_id, revision);
        held.entry.record.cancel(0);
        held
    }

    fn revision(recent: &Recent, run_id: &str, is_over: bool, now: Instant) -> Option<u64> {
        recent.get(run_id, is_over, now).map(|(held, _)| held.revision)
    }

    #[test]
    fn what_may_have_changed_is_believed_for_a_moment_and_an_end_for_longer() {
        let (recent, now) = (Recent::default(), Instant::now());
        recent.keep(&held("open", 1), Bytes::new(), 9, now);
        recent.keep(&ended("over", 2), Bytes::from_static(b"out"), 9, now);
        let late = now + FRESH;
        assert_eq!(revision(&recent, "open", false, now), Some(1));
        assert_eq!([revision(&recent, "open", true, now), revision(&recent, "open", false, late)], [None; 2]);
        assert_eq!(recent.get("over", true, late).unwrap().1, "out");
        assert_eq!(revision(&recent, "over", true, now + OVER), None);
    }

    #[test]
    fn what_is_older_or_was_changed_elsewhere_is_not_shown() {
        let (recent, now) = (Recent::default(), Instant::now());
        recent.keep(&held("r", 5), Bytes::new(), 9, now);
        recent.keep(&held("r", 4), Bytes::new(), 9, now);
        assert_eq!(revision(&recent, "r", false, now), Some(5));
        recent.forget("r");
        assert_eq!(revision(&recent, "r", false, now), None);
        assert_eq!(recent.runs().bytes, 0);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let (recent, now) = (Recent::default(), Instant::now());
        for number in 0..MAX_RUNS as u64 + 5 {
            recent.keep(&held(&number.to_string(), number), Bytes::new(), 1, now);
            recent.keep(&held("again", number), Bytes::new(), 1, now);
        }
        let kept = recent.runs().by_id.len();
        assert!(kept <= MAX_RUNS && recent.runs().order.len() == MAX_RUNS, "{kept}");
        assert!(revision(&recent, "again", false, now).is_some());
        recent.keep(&held("large", 1), Bytes::new(), MAX_BYTES, now);
        assert_eq!(recent.runs().by_id.len(), 1);
        recent.keep(&held("larger", 1), Bytes::new(), MAX_BYTES + 1, now);
        let runs = recent.runs();
        assert_eq!((runs.by_id.len(), runs.bytes), (0, 0));
    }
}
