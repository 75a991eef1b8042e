//! What befalls a fleet, and when: a function of a seed, counted in runs that have ended, so that a seed is a schedule on
//! whatever machine.

use fastrand::Rng;

/// How many NATS servers there are: one may be away.
pub(crate) const SERVERS: usize = 3;

pub(crate) const ORCHESTRATORS: usize = 3;

pub(crate) const WORKERS: usize = 8;

/// One way in which a fleet fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to this NATS server.
    KillServer(usize),
    /// This NATS server and the others do not reach each other; `silent`: and are not told.
    CutServer { server: usize, silent: bool },
    /// SIGKILL to this orchestrator.
    KillOrchestrator(usize),
    /// SIGTERM to this orchestrator: its workers go to others.
    StopOrchestrator(usize),
    /// SIGKILL to this worker.
    KillWorker(usize),
    /// This orchestrator reaches no NATS server, and is not told.
    CutOrchestrator(usize),
}

/// A fault, when it begins, and when it is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) begins: u64,
    pub(crate) ends: u64,
    pub(crate) fault: Fault,
}

/// What befalls the servers, and what befalls all others: two lists, in each of which a fault is mended before the next
/// begins, so that never more than one server is away.
pub(crate) fn schedule(seed: u64, runs: u64, faults: u64, partition: bool) -> [Vec<Entry>; 2] {
    let mut servers: Vec<Kind> = vec![|rng| Fault::KillServer(rng.usize(..SERVERS))];
    let mut others: Vec<Kind> = vec![
        |rng| Fault::KillOrchestrator(rng.usize(..ORCHESTRATORS)),
        |rng| Fault::StopOrchestrator(rng.usize(..ORCHESTRATORS)),
        |rng| Fault::KillWorker(rng.usize(..WORKERS)),
    ];
    if partition {
        servers.push(|rng| Fault::CutServer { server: rng.usize(..SERVERS), silent: rng.bool() });
        others.push(|rng| Fault::CutOrchestrator(rng.usize(..ORCHESTRATORS)));
    }
    let mut rng = Rng::with_seed(seed);
    [lane(&mut rng, runs, faults / 2, &servers), lane(&mut rng, runs, faults.div_ceil(2), &others)]
}

/// A kind of fault, and who is hit by chance.
type Kind = fn(&mut Rng) -> Fault;

/// Faults one after another over all runs. Each kind comes once before any comes again.
fn lane(rng: &mut Rng, runs: u64, faults: u64, kinds: &[Kind]) -> Vec<Entry> {
    let mut deck = Vec::new();
    let each = runs / (faults + 1);
    let mut entry = |turn: u64| {
        if deck.is_empty() {
            deck = kinds.to_vec();
            rng.shuffle(&mut deck);
        }
        let kind = deck.pop().expect("there are kinds of faults");
        let begins = turn * each + rng.u64(0..=each / 3);
        Entry { begins, ends: begins + rng.u64(each / 6..=each / 2), fault: kind(rng) }
    };
    (0..faults).map(&mut entry).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, mem::discriminant};

    use super::*;

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(schedule(7, 1000, 20, true), schedule(7, 1000, 20, true));
        assert_ne!(schedule(7, 1000, 20, true), schedule(8, 1000, 20, true));
    }

    #[test]
    fn one_fault_of_a_kind_of_process_is_mended_before_the_next_and_all_before_the_last_run() {
        for seed in 0..100 {
            for lane in schedule(seed, 1000, 20, true) {
                assert!(lane.iter().is_sorted_by(|a, b| a.ends < b.begins), "{lane:?}");
                assert!(lane.last().is_some_and(|last| last.ends < 1000) && lane.len() == 10, "{lane:?}");
            }
        }
    }

    #[test]
    fn every_kind_comes_and_networks_fail_only_if_they_may() {
        let kinds = |faults, partition| {
            let entries = schedule(1, 1000, faults, partition).concat();
            entries.iter().map(|entry| format!("{:?}", discriminant(&entry.fault))).collect::<BTreeSet<_>>()
        };
        assert_eq!(kinds(8, true).len(), 6);
        assert_eq!(kinds(100, false).len(), 4);
    }
}
