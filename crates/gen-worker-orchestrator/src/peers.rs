//! The other orchestrators of a fleet, as they say of themselves, and where a worker had better be: pure functions of that
//! and of the time.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often an orchestrator tells the others of itself, and sends a worker on if it has too many.
pub(crate) const EVERY: Duration = Duration::from_secs(1);

/// Nobody is sent to an orchestrator that was not heard of for so long.
const FORGOTTEN: Duration = Duration::from_secs(4);

/// Who is back so soon did not find or did not like the other, and is left alone from then on.
const BACK: Duration = Duration::from_secs(60);

/// What an orchestrator says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Presence {
    /// Which process it is.
    pub(crate) scheduler_id: String,
    /// Where workers reach it.
    pub(crate) address: String,
    /// How many streams of workers are up; `None`: it leaves, and takes no more.
    pub(crate) workers: Option<usize>,
}

#[derive(Debug)]
struct Peer {
    address: String,
    workers: usize,
    heard: Instant,
}

/// The others that take workers.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    others: BTreeMap<String, Peer>,
    /// The workers that were sent on for being too many, by their ids.
    sent: HashMap<String, Instant>,
}

impl Peers {
    pub(crate) fn hear(&mut self, said: Presence, now: Instant) {
        self.forget(now);
        match said.workers {
            Some(workers) => {
                let peer = Peer { address: said.address, workers, heard: now };
                self.others.insert(said.scheduler_id, peer);
            }
            None => drop(self.others.remove(&said.scheduler_id)),
        }
    }

    /// How many there are.
    pub(crate) fn count(&mut self, now: Instant) -> usize {
        self.forget(now);
        self.others.len()
    }

    fn forget(&mut self, now: Instant) {
        self.others.retain(|_, peer| now.saturating_duration_since(peer.heard) < FORGOTTEN);
    }

    fn least(&mut self, now: Instant) -> Option<&mut Peer> {
        self.forget(now);
        self.others.values_mut().min_by_key(|peer| peer.workers)
    }

    /// Where a worker goes that cannot stay: to whom has the fewest, one more from now on. `None`: nobody is there.
    pub(crate) fn place(&mut self, now: Instant) -> Option<String> {
        let least = self.least(now)?;
        least.workers += 1;
        Some(least.address.clone())
    }

    /// Where one of `mine` workers goes because they are many more than those of others: a quarter more than everybody
    /// has on average, and at least two more than the fewest, so that no worker is sent back and forth.
    pub(crate) fn relief(&mut self, mine: usize, now: Instant) -> Option<String> {
        let fewest = self.least(now)?.workers;
        let all = mine + self.others.values().map(|peer| peer.workers).sum::<usize>();
        let many = mine * 4 * (self.others.len() + 1) > all * 5;
        if many && mine >= fewest + 2 { self.place(now) } else { None }
    }

    /// A worker was sent on for being one too many.
    pub(crate) fn sent(&mut self, worker_id: &str, now: Instant) {
        self.sent.retain(|_, sent| now.saturating_duration_since(*sent) < BACK);
        self.sent.insert(worker_id.to_owned(), now);
    }

    /// Whether a worker that connects was sent on a moment ago.
    pub(crate) fn is_back(&self, worker_id: &str, now: Instant) -> bool {
        self.sent.get(worker_id).is_some_and(|sent| now.saturating_duration_since(*sent) < BACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: &str, workers: Option<usize>) -> Presence {
        Presence { scheduler_id: name.to_owned(), address: format!("{name}:1"), workers }
    }

    fn peers(counts: &[(&str, usize)], now: Instant) -> Peers {
        let mut peers = Peers::default();
        counts.iter().for_each(|(name, workers)| peers.hear(said(name, Some(*workers)), now));
        peers
    }

    #[test]
    fn the_workers_of_one_that_leaves_are_spread_over_the_others() {
        let now = Instant::now();
        let mut peers = peers(&[("a", 3), ("b", 1)], now);
        let placed: Vec<_> = (0..4).map(|_| peers.place(now).unwrap()).collect();
        assert_eq!(placed, ["b:1", "b:1", "a:1", "b:1"]);
    }

    #[test]
    fn nobody_is_sent_to_one_that_leaves_or_is_silent() {
        let now = Instant::now();
        let mut peers = peers(&[("a", 3), ("b", 1)], now);
        peers.hear(said("b", None), now);
        assert_eq!(peers.place(now).as_deref(), Some("a:1"));
        assert_eq!(peers.place(now + FORGOTTEN), None);
    }

    #[test]
    fn who_does_not_go_is_known_when_it_is_back() {
        let now = Instant::now();
        let mut peers = Peers::default();
        peers.sent("w", now);
        assert!(peers.is_back("w", now) && !peers.is_back("v", now) && !peers.is_back("w", now + BACK));
        peers.sent("v", now + BACK);
        assert_eq!(peers.sent.len(), 1);
    }

    #[test]
    fn only_who_has_many_more_sends_any_on_and_all_come_to_rest() {
        let now = Instant::now();
        for (mine, others, sends) in
            [(4, &[][..], false), (2, &[0], true), (1, &[0], false), (9, &[8], false)]
        {
            let mut peers = Peers::default();
            others.iter().for_each(|workers| peers.hear(said("a", Some(*workers)), now));
            assert_eq!(peers.relief(mine, now).is_some(), sends, "{mine} beside {others:?}");
        }
        let mut counts = [0, 1, 30];
        let mut moves = 0;
        loop {
            let before = counts;
            for me in 0..counts.len() {
                let others = (0..counts.len()).filter(|other| *other != me);
                let mut peers = Peers::default();
                others.for_each(|other| peers.hear(said(&other.to_string(), Some(before[other])), now));
                if let Some(to) = peers.relief(before[me], now) {
                    counts[me] -= 1;
                    counts[to.trim_end_matches(":1").parse::<usize>().unwrap()] += 1;
                    moves += 1;
                }
            }
            if counts == before {
                break;
            }
        }
        assert!(counts.iter().all(|count| (8..=13).contains(count)) && moves < 25, "{counts:?}, {moves}");
    }
}
