//! What befalls the world, and when: a function of a seed, a length and what can be done here, so that a seed is a schedule.

use std::time::Duration;

use fastrand::Rng;

/// How many workers there are.
pub(crate) const WORKERS: usize = 3;

/// The worker that is never killed, so that what it gathers over time shows.
pub(crate) const SURVIVOR: usize = 0;

/// How many models the hub has.
pub(crate) const MODELS: usize = 16;

/// The shortest and the longest time from one fault to the next, in milliseconds. A mended fault takes up to three seconds, so
/// several are there at once.
const GAP_MS: (u64, u64) = (300, 1500);

/// How long a fault that is mended lasts, in milliseconds: shorter and longer than the waits of the workers.
const LASTS_MS: (u64, u64) = (300, 3000);

/// One way in which the world fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL to this worker, and a new start.
    Kill(usize),
    /// SIGTERM to this worker, and a new start once it has left.
    Terminate(usize),
    /// The worker's process stands still.
    Freeze(usize, Duration),
    /// The worker's stream is reset.
    DropStream(usize),
    /// Nothing passes on the worker's stream any more; then it is reset.
    SilentStream(usize, Duration),
    /// The worker's token has expired, until it is given another.
    ExpiredToken(usize, Duration),
    /// All transfers to and from this peer are reset.
    DropTransfers(Peer),
    /// Nothing passes to and from this peer any more; then its transfers are reset.
    SilentTransfers(Peer, Duration),
    /// The hub's next answers for this model have a wrong byte.
    CorruptModel(usize),
    /// The hub's next answer for this model ends early.
    CutModel(usize),
    /// The hub's next answers for this model are 503.
    BusyHub(usize),
    /// The disk of one worker is full.
    FullDisk(Duration),
    /// SIGKILL to the orchestrator, and a new start.
    KillOrchestrator,
}

/// Where workers get bytes from and bring them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// The orchestrator's file API.
    Files,
    /// The hub.
    Hub,
    /// The S3-compatible store.
    Store,
}

/// What can be done in this world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Able {
    /// There is a disk that can be filled.
    pub(crate) fill_disk: bool,
    /// The orchestrator's runs survive its process.
    pub(crate) kill_orchestrator: bool,
}

/// A fault and its time since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// All faults of one soak, in order. Each kind comes once before any comes again.
pub(crate) fn schedule(seed: u64, length: Duration, able: Able) -> Vec<Entry> {
    let mut rng = Rng::with_seed(seed);
    let (mut entries, mut deck, mut at) = (Vec::new(), Vec::new(), Duration::ZERO);
    loop {
        at += millis(&mut rng, GAP_MS);
        if at >= length {
            return entries;
        }
        if deck.is_empty() {
            deck = kinds(able);
            rng.shuffle(&mut deck);
        }
        let kind = deck.pop().expect("there are kinds of faults");
        entries.push(Entry { at, fault: kind(&mut rng) });
    }
}

/// A kind of fault, and who is hit how long by chance.
type Kind = fn(&mut Rng) -> Fault;

fn kinds(able: Able) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = vec![
        |rng| Fault::Kill(mortal(rng)),
        |rng| Fault::Terminate(mortal(rng)),
        |rng| Fault::Freeze(any(rng), millis(rng, LASTS_MS)),
        |rng| Fault::DropStream(any(rng)),
        |rng| Fault::SilentStream(any(rng), millis(rng, LASTS_MS)),
        |rng| Fault::ExpiredToken(any(rng), millis(rng, LASTS_MS)),
        |rng| Fault::DropTransfers(peer(rng)),
        |rng| Fault::SilentTransfers(peer(rng), millis(rng, LASTS_MS)),
        |rng| Fault::CorruptModel(rng.usize(..MODELS)),
        |rng| Fault::CutModel(rng.usize(..MODELS)),
        |rng| Fault::BusyHub(rng.usize(..MODELS)),
    ];
    if able.fill_disk {
        kinds.push(|rng| Fault::FullDisk(millis(rng, LASTS_MS)));
    }
    if able.kill_orchestrator {
        kinds.push(|_| Fault::KillOrchestrator);
    }
    kinds
}

fn any(rng: &mut Rng) -> usize {
    rng.usize(..WORKERS)
}

fn mortal(rng: &mut Rng) -> usize {
    rng.usize(SURVIVOR + 1..WORKERS)
}

fn peer(rng: &mut Rng) -> Peer {
    [Peer::Files, Peer::Hub, Peer::Store][rng.usize(..3)]
}

fn millis(rng: &mut Rng, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(rng.u64(least..=most))
}

#[cfg(test)]
mod tests {
    use std::mem::discriminant;

    use super::*;

    const ALL: Able = Able { fill_disk: true, kill_orchestrator: true };
    const LENGTH: Duration = Duration::from_secs(60);

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(schedule(7, LENGTH, ALL), schedule(7, LENGTH, ALL));
        assert_ne!(schedule(7, LENGTH, ALL), schedule(8, LENGTH, ALL));
        let (short, long) = (schedule(7, LENGTH / 2, ALL), schedule(7, LENGTH, ALL));
        assert_eq!(short[..], long[..short.len()], "a longer soak begins as a shorter one does");
    }

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        let kinds = kinds(ALL).len();
        let entries = schedule(1, LENGTH, ALL);
        let mut first: Vec<_> = entries[..kinds].iter().map(|entry| discriminant(&entry.fault)).collect();
        first.dedup();
        assert!(first.iter().enumerate().all(|(at, kind)| !first[..at].contains(kind)), "{entries:?}");
    }

    #[test]
    fn what_cannot_be_done_is_not_asked_for() {
        let none = Able { fill_disk: false, kill_orchestrator: false };
        let asked = schedule(1, LENGTH * 10, none);
        let impossible = |entry: &Entry| matches!(entry.fault, Fault::FullDisk(_) | Fault::KillOrchestrator);
        assert!(!asked.iter().any(impossible));
        let hit = |entry: &Entry| matches!(entry.fault, Fault::Kill(SURVIVOR) | Fault::Terminate(SURVIVOR));
        assert!(!asked.iter().any(hit), "the survivor is left alone");
    }

    #[test]
    fn times_rise_and_end_with_the_soak() {
        let entries = schedule(3, LENGTH, ALL);
        assert!(entries.is_sorted_by(|a, b| a.at < b.at) && entries.last().unwrap().at < LENGTH);
    }
}
