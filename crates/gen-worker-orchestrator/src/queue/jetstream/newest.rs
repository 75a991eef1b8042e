//! The newest of all runs, as this process has seen them: each look reads what has changed since the one before.

use std::collections::{BTreeMap, HashMap};

use crate::run::RunView;

/// Most steps of runs that one look goes back: what was not looked at for longer is not listed.
const WINDOW: u64 = 20_000;

/// Most runs that are remembered.
const KEPT: usize = 10_000;

/// When a run was asked for, and the first revision of it that was seen, for runs of one millisecond.
type Place = (u64, u64);

/// The newest runs, each with its revision.
#[derive(Debug, Default)]
pub(super) struct Newest {
    seen: u64,
    places: HashMap<String, Place>,
    runs: BTreeMap<Place, (u64, RunView)>,
}

impl Newest {
    /// The first revision that is to be read, where this is the last one there is.
    pub(super) fn next(&mut self, last: u64) -> u64 {
        if last < self.seen {
            // The bucket is another.
            *self = Self::default();
        }
        (self.seen + 1).max(last.saturating_sub(WINDOW))
    }

    /// Takes a revision, after all earlier ones; `None`: the run is gone.
    pub(super) fn see(&mut self, revision: u64, run_id: &str, run: Option<RunView>) {
        self.seen = revision;
        let Some(run) = run else {
            let place = self.places.remove(run_id);
            place.and_then(|place| self.runs.remove(&place));
            return;
        };
        let place = *self.places.entry(run.run_id.clone()).or_insert((run.created_at_ms, revision));
        self.runs.insert(place, (revision, run));
        if self.runs.len() > KEPT
            && let Some((_, (_, oldest))) = self.runs.pop_first()
        {
            self.places.remove(&oldest.run_id);
        }
    }

    /// At most `limit` runs, of one tenant if one is named, newest first, of those that are not older than a revision.
    pub(super) fn list(&self, tenant_id: Option<&str>, limit: usize, first: u64) -> Vec<RunView> {
        let there = self.runs.values().rev().filter(|(revision, _)| *revision >= first).map(|(_, run)| run);
        let its = there.filter(|run| tenant_id.is_none() || tenant_id == run.tenant_id.as_deref());
        its.take(limit).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{queue::record::Record, run::RunRequest};

    fn run(number: u64) -> RunView {
        Record::new(&format!("r{number}"), RunRequest::of("f"), number).summary()
    }

    fn ids(newest: &Newest, first: u64) -> Vec<String> {
        newest.list(None, 3, first).into_iter().map(|run| run.run_id).collect()
    }

    #[test]
    fn what_took_a_step_keeps_its_place_and_what_is_gone_is_not_listed() {
        let mut newest = Newest::default();
        for number in 1..=4 {
            newest.see(number, "", Some(run(number)));
        }
        newest.see(5, "r1", Some(run(1)));
        assert_eq!(ids(&newest, 0), ["r4", "r3", "r2"]);
        newest.see(6, "r3", None);
        assert_eq!(ids(&newest, 0), ["r4", "r2", "r1"]);
        // The servers keep nothing before this.
        assert_eq!(ids(&newest, 4), ["r4", "r1"]);
    }

    #[test]
    fn no_look_goes_back_further_than_the_window_or_twice_over_the_same() {
        let mut newest = Newest::default();
        assert_eq!(newest.next(WINDOW + 7), 7);
        newest.see(9, "r", Some(run(1)));
        assert_eq!(newest.next(30), 10);
        assert_eq!((newest.next(3), newest.list(None, 9, 0)), (1, Vec::new()));
        for number in 1..=KEPT as u64 + 5 {
            newest.see(number, "", Some(run(number)));
        }
        assert_eq!((newest.runs.len(), newest.places.len()), (KEPT, KEPT));
    }
}
