//! The runs that workers have whose streams are here: their leases are extended from here, and from nowhere else.
//!
//! The servers extend a lease whoever asks for it. So what is no longer ours must be let go, or the next attempt, which
//! another orchestrator has, would outlive that one.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{records::Held, said::number};
use crate::queue::record::Standing;

#[derive(Debug)]
struct Lease {
    held: Held,
    /// The revision that made it ours, of which what its worker says has its numbers, and how much that was.
    since: u64,
    said: u64,
}

#[derive(Debug, Default)]
pub(super) struct Leases(Mutex<HashMap<String, Lease>>);

impl Leases {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Lease>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a lease that was just written.
    pub(super) fn keep(&self, held: Held) {
        let run_id = held.entry.record.run_id.clone();
        self.lock().insert(run_id, Lease { since: held.revision, said: 0, held });
    }

    /// A run that a worker has whose stream is here, at this attempt.
    pub(super) fn find(&self, run_id: &str, attempt: i64, worker_id: &str) -> Option<Held> {
        let leases = self.lock();
        let held = leases.get(run_id).map(|lease| &lease.held);
        held.filter(|held| held.entry.record.is_with(attempt, worker_id)).cloned()
    }

    /// The number of the next thing that a run says; `None`: it is not here, or has said too much.
    pub(super) fn next_number(&self, run_id: &str) -> Option<u64> {
        let mut leases = self.lock();
        let lease = leases.get_mut(run_id)?;
        lease.said += 1;
        number(lease.since, lease.said)
    }

    /// A message was delivered once more; true if the lease here is of the same attempt. Then the servers lost track,
    /// not the worker.
    pub(super) fn delivered_again(&self, run_id: &str, attempt: i64, ack: &str) -> bool {
        let mut leases = self.lock();
        let here = leases.get_mut(run_id).map(|lease| &mut lease.held);
        let here = here.filter(|here| here.entry.record.attempt == attempt);
        here.map(|here| ack.clone_into(&mut here.entry.ack)).is_some()
    }

    /// Takes over how a run stands, which may be how it stood a moment ago. A lease of an earlier attempt is over, and
    /// so is that of a run that waits again or has ended.
    pub(super) fn learn(&self, now: &Held) {
        let record = &now.entry.record;
        let mut leases = self.lock();
        let Some(Lease { held: here, .. }) = leases.get_mut(&record.run_id) else { return };
        if here.entry.record.attempt > record.attempt {
            return;
        }
        if here.entry.record.attempt == record.attempt && record.standing == Standing::Running {
            if here.revision < now.revision {
                let ack = std::mem::take(&mut here.entry.ack);
                *here = now.clone();
                here.entry.ack = ack;
            }
        } else {
            leases.remove(&record.run_id);
        }
    }

    /// Another has a later attempt; the attempt that was here, if one was.
    pub(super) fn overtaken(&self, run_id: &str, attempt: i64) -> Option<i64> {
        let mut leases = self.lock();
        let here = leases.get(run_id).map(|here| here.held.entry.record.attempt);
        let here = here.filter(|here| *here < attempt)?;
        leases.remove(run_id);
        Some(here)
    }

    /// Lets a lease end; 0: of whichever attempt.
    pub(super) fn let_go(&self, run_id: &str, attempt: i64) {
        let mut leases = self.lock();
        let here = leases.get(run_id).map(|here| here.held.entry.record.attempt);
        if here.is_some_and(|here| attempt == 0 || attempt == here) {
            leases.remove(run_id);
        }
    }

    /// Where the messages of all leases are acknowledged.
    pub(super) fn acks(&self) -> Vec<String> {
        self.lock().values().map(|lease| lease.held.entry.ack.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        queue::{jetstream::records::Entry, record::Record},
        run::RunRequest,
    };

    /// The run `r` as it is after its first attempt was started, and perhaps more.
    fn held(revision: u64, then: impl FnOnce(&mut Record)) -> Held {
        let mut record = Record::new("r", RunRequest::of("f"), 0);
        record.start("w", 0);
        then(&mut record);
        let mut entry = Entry::new(record, false, 0);
        entry.ack = "ack".to_owned();
        Held { entry, revision }
    }

    fn leased() -> Leases {
        let leases = Leases::default();
        leases.keep(held(5, |_| {}));
        leases
    }

    fn lost(record: &mut Record) {
        record.lose(0);
    }

    #[test]
    fn what_is_no_longer_ours_is_let_go() {
        let ended = |record: &mut Record| {
            record.lose(0);
            record.cancel(0);
        };
        for now in [held(6, lost), held(6, ended)] {
            let leases = leased();
            leases.learn(&now);
            assert!(leases.acks().is_empty(), "{now:?}");
        }
        let leases = leased();
        assert_eq!((leases.overtaken("r", 1), leases.overtaken("r", 2)), (None, Some(1)));
        assert!(leases.acks().is_empty());
    }

    #[test]
    fn what_is_old_or_of_another_changes_nothing() {
        let leases = Leases::default();
        leases.keep(held(5, |record| {
            record.lose(0);
            record.start("w", 0);
        }));
        leases.learn(&held(4, |_| {}));
        leases.let_go("r", 1);
        assert!(leases.find("r", 2, "w").is_some() && leases.find("r", 1, "w").is_none());
        leases.let_go("r", 0);
        assert!(leases.acks().is_empty());
    }

    #[test]
    fn a_cancel_is_learned_and_the_newest_address_kept() {
        let leases = leased();
        assert!(leases.delivered_again("r", 1, "newer") && !leases.delivered_again("r", 2, "other"));
        leases.learn(&held(6, |record| drop(record.cancel(0))));
        let here = leases.find("r", 1, "w").unwrap();
        assert!(here.entry.record.cancel_requested);
        assert_eq!((here.revision, leases.acks()), (6, vec!["newer".to_owned()]));
        // What its worker says goes on as it began.
        assert_eq!([leases.next_number("r"), leases.next_number("r")], [number(5, 1), number(5, 2)]);
    }
}
