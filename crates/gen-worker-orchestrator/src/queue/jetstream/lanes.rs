//! Which lanes may have something to lease, as far as this orchestrator knows, and how many runs each is asked for next:
//! a decision about what was heard and what came, without a word to the servers.
//!
//! What may wait in a lane is counted up by what is heard, and put right by what comes. A run that was taken may come a moment
//! later than its word, where other servers lead the lane than the stream: it is asked for again and again until it comes, or
//! somebody says to have it. What nobody tells of, a run whose time to be tried again has come or whose worker is lost, is
//! looked for now and then, in each lane that has runs.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::{POLL, names::Lane};
use crate::{
    dispatch::{Load, best},
    queue::{fair::Shares, limits::TenantLimits},
};

/// Most runs that are asked for at once, of all lanes together.
const BATCH: usize = 256;

/// A lane where something may wait is asked for at least so many: more may have come by then, and asking costs the same.
const EAGER: usize = 32;

/// How long a lane is not asked, at first, that has not given a run which was heard of.
const SOON: Duration = Duration::from_millis(5);

/// The longest time that a lane with runs is not asked. It begins with [`POLL`], or [`SOON`], and doubles while nothing comes.
pub(super) const LONGEST_REST: Duration = Duration::from_secs(2);

/// What is known of a lane.
#[derive(Debug)]
struct Known {
    /// When it is asked although nothing was heard.
    again: Instant,
    rest: Duration,
    /// Runs that were heard of since it was asked.
    heard: usize,
    /// Runs that were heard of, and that nobody is known to have leased.
    missing: usize,
    /// Its tenant has all that it may have running, so that what is heard of waits.
    full: bool,
    /// When something was heard of it.
    since: Instant,
}

/// What a lane gave.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gave {
    pub(super) asked: usize,
    pub(super) runs: usize,
    /// Runs that wait behind these and were never delivered.
    pub(super) behind: usize,
    /// Whether one was delivered before: there may be more of them.
    pub(super) again: bool,
    /// Whether its tenant has all now that it may have running.
    pub(super) full: bool,
}

/// The lanes that may have runs.
#[derive(Debug)]
pub(super) struct Lanes {
    shares: Shares,
    known: HashMap<Lane, Known>,
    /// When a lane is to be asked again, at the earliest.
    next: Instant,
    /// When the first turn of questions began.
    since: Instant,
    /// Whether a worker could take something, as far as was seen.
    room: bool,
}

/// What is left of a time beyond a number of turns.
fn remainder(time: Duration, turn: Duration) -> Duration {
    Duration::from_millis((time.as_millis() % turn.as_millis()) as u64)
}

impl Lanes {
    pub(super) fn new(limits: &TenantLimits, now: Instant) -> Self {
        let shares = Shares::new(limits.tenant_weights.clone(), limits.function_weights.clone());
        Self { shares, known: HashMap::new(), next: now, since: now, room: false }
    }

    fn known(&mut self, lane: Lane, now: Instant) -> &mut Known {
        self.next = self.next.min(now + POLL);
        self.known.entry(lane).or_insert(Known {
            again: now + POLL,
            rest: POLL,
            heard: 0,
            missing: 0,
            full: false,
            since: now,
        })
    }

    /// A run was taken.
    pub(super) fn heard(&mut self, lane: &Lane, now: Instant) {
        let known = self.known(lane.clone(), now);
        known.heard += 1;
        known.missing += 1;
        known.rest = SOON / 2;
        known.since = now;
        let full = known.full;
        if !full {
            self.add(lane);
        }
    }

    /// A run was leased elsewhere.
    pub(super) fn gone(&mut self, lane: &Lane) {
        if let Some(known) = self.known.get_mut(lane) {
            known.missing = known.missing.saturating_sub(1);
        }
    }

    /// A run ended of a tenant that may have so many: another may start.
    pub(super) fn freed(&mut self, lane: &Lane) {
        if let Some(known) = self.known.get_mut(lane)
            && std::mem::take(&mut known.full)
        {
            self.add(lane);
        }
    }

    /// A run of a lane waits for this moment.
    pub(super) fn expect(&mut self, lane: &Lane, at: Instant, now: Instant) {
        let known = self.known(lane.clone(), now);
        known.since = now;
        known.again = known.again.min(at);
        // The servers may have it a moment later.
        known.rest = POLL / 2;
        self.next = self.next.min(at);
    }

    fn add(&mut self, lane: &Lane) {
        let waiting = self.shares.waiting(&lane.tenant, &lane.function);
        self.learn(lane, waiting + 1);
    }

    fn learn(&mut self, lane: &Lane, waiting: usize) {
        let waiting = if waiting > 0 { waiting.max(EAGER) } else { 0 };
        self.shares.learn(&lane.tenant, &lane.function, waiting);
    }

    /// Learns which lanes have runs, and how many: what has begun to be known since it was asked may be missing.
    pub(super) fn saw(&mut self, open: BTreeMap<Lane, usize>, asked: Instant, now: Instant) {
        let shares = &mut self.shares;
        self.known.retain(|lane, known| {
            let is_open = open.contains_key(lane) || known.since >= asked;
            if !is_open {
                shares.learn(&lane.tenant, &lane.function, 0);
            }
            is_open
        });
        for (lane, runs) in open {
            if !self.known.contains_key(&lane) {
                self.learn(&lane, runs);
                self.known(lane, now);
            }
        }
    }

    /// Which lanes to ask for how many runs, for what these workers could take.
    pub(super) fn plan(&mut self, workers: &[Load], now: Instant) -> Vec<(Lane, usize)> {
        self.room = workers.iter().any(Load::has_room);
        if !self.room {
            return Vec::new();
        }
        if self.next <= now {
            self.look_again(now);
        }
        let mut loads = workers.to_vec();
        let place =
            |function: &str| best(function, &[], &mut loads).map(|load| load.charge(function)).is_some();
        let plan: Vec<_> = self
            .shares
            .plan(BATCH, place)
            .into_iter()
            .map(|share| {
                let (function, tenant) = (share.function.to_owned(), share.tenant.to_owned());
                (Lane { function, tenant }, share.runs)
            })
            .collect();
        for (lane, _) in &plan {
            if let Some(known) = self.known.get_mut(lane) {
                known.heard = 0;
            }
        }
        plan
    }

    /// How long it is, at most, until a lane is to be asked again that nobody speaks of.
    pub(super) fn rest(&self, now: Instant) -> Duration {
        if self.room { self.next.saturating_duration_since(now) } else { LONGEST_REST }
    }

    #[cfg(test)]
    pub(super) fn have_been_asked(&self) -> bool {
        self.known.keys().all(|lane| self.shares.waiting(&lane.tenant, &lane.function) == 0)
    }

    /// Has each lane asked that has rested.
    fn look_again(&mut self, now: Instant) {
        self.next = now + LONGEST_REST;
        for (Lane { function, tenant }, known) in &mut self.known {
            if self.shares.waiting(tenant, function) > 0 {
                continue;
            }
            if known.again <= now {
                known.full = false;
                self.shares.learn(tenant, function, EAGER);
            } else {
                self.next = self.next.min(known.again);
            }
        }
    }

    /// Learns what a lane gave.
    pub(super) fn came(&mut self, lane: &Lane, gave: Gave, now: Instant) {
        self.shares.came(&lane.tenant, &lane.function, gave.runs);
        let Some(known) = self.known.get_mut(lane) else {
            return self.learn(lane, 0);
        };
        known.missing = known.missing.saturating_sub(gave.runs);
        let first = if known.missing > 0 { SOON } else { POLL };
        known.rest = if gave.runs > 0 { first } else { LONGEST_REST.min(2 * known.rest).max(first) };
        if known.rest == LONGEST_REST {
            // Whoever has them was not heard.
            known.missing = 0;
        }
        known.again = now + known.rest;
        if known.missing == 0 {
            // One question after another would hold up what is heard of: those that may wait are asked together.
            known.again -= remainder(known.again - self.since, POLL);
        }
        known.full = gave.full;
        self.next = self.next.min(known.again);
        let waiting = if gave.full {
            0
        } else if gave.runs < gave.asked {
            known.heard
        } else {
            gave.behind.max(known.heard).max(usize::from(gave.again))
        };
        self.learn(lane, waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::conformance::worker;

    fn lane(tenant: &str) -> Lane {
        Lane { function: "f".to_owned(), tenant: tenant.to_owned() }
    }

    fn plan(lanes: &mut Lanes, slots: i32, now: Instant) -> Vec<(String, usize)> {
        let plan = lanes.plan(&[worker(1, slots)], now);
        plan.into_iter().map(|(lane, runs)| (lane.tenant, runs)).collect()
    }

    fn gave(asked: usize, runs: usize) -> Gave {
        Gave { asked, runs, ..Default::default() }
    }

    #[test]
    fn a_lane_is_asked_when_it_was_heard_of_and_then_ever_more_seldom() {
        let now = Instant::now();
        let mut lanes = Lanes::new(&TenantLimits::default(), now);
        assert!(plan(&mut lanes, 9, now).is_empty());
        lanes.heard(&lane("a"), now);
        lanes.heard(&lane("a"), now);
        assert_eq!(plan(&mut lanes, 9, now), [("a".to_owned(), 9)]);
        // It is heard of while it is asked: what was heard is asked for next.
        lanes.heard(&lane("a"), now);
        lanes.came(&lane("a"), gave(9, 1), now);
        assert_eq!(plan(&mut lanes, 9, now), [("a".to_owned(), 9)]);
        (0..2).for_each(|_| lanes.gone(&lane("a")));
        lanes.came(&lane("a"), gave(9, 0), now);
        assert!(plan(&mut lanes, 9, now).is_empty());
        let (mut at, mut rests) = (now, Vec::new());
        while rests.len() < 5 {
            at += POLL;
            if !plan(&mut lanes, 9, at).is_empty() {
                lanes.came(&lane("a"), gave(9, 0), at);
                rests.push((at - now).as_millis());
            }
        }
        assert_eq!(rests, [250, 750, 1750, 3750, 5750]);
        lanes.expect(&lane("a"), at + POLL, at);
        assert!(plan(&mut lanes, 9, at).is_empty());
        assert_eq!(plan(&mut lanes, 9, at + POLL).len(), 1);
    }

    #[test]
    fn a_run_that_was_heard_of_and_did_not_come_is_asked_for_soon_until_somebody_has_it() {
        let since = Instant::now();
        let mut now = since;
        let mut lanes = Lanes::new(&TenantLimits::default(), now);
        lanes.heard(&lane("a"), now);
        plan(&mut lanes, 9, now);
        lanes.came(&lane("a"), gave(9, 0), now);
        for rest in [SOON, 2 * SOON, 4 * SOON] {
            assert_eq!(lanes.rest(now), rest);
            assert!(plan(&mut lanes, 9, now + rest / 2).is_empty());
            now += rest;
            assert_eq!(plan(&mut lanes, 9, now).len(), 1);
            lanes.came(&lane("a"), gave(9, 0), now);
        }
        lanes.gone(&lane("a"));
        plan(&mut lanes, 9, now + 8 * SOON);
        lanes.came(&lane("a"), gave(9, 0), now);
        assert_eq!(lanes.rest(since), POLL);
        // Where nobody takes anything, nothing is asked for.
        plan(&mut lanes, 0, now + POLL);
        assert_eq!(lanes.rest(now + POLL), LONGEST_REST);
        // What has come is not missing.
        lanes.heard(&lane("a"), now);
        plan(&mut lanes, 9, now);
        lanes.came(&lane("a"), gave(9, 1), now);
        assert_eq!(lanes.rest(since), POLL);
    }

    #[test]
    fn no_more_is_asked_for_than_workers_take_and_what_is_behind_next() {
        let now = Instant::now();
        let mut lanes = Lanes::new(&TenantLimits::default(), now);
        lanes.saw(BTreeMap::from([(lane("a"), 50), (lane("b"), 3)]), now, now);
        assert_eq!(plan(&mut lanes, 4, now), [("a".to_owned(), 2), ("b".to_owned(), 2)]);
        lanes.came(&lane("a"), Gave { behind: 48, ..gave(2, 2) }, now);
        lanes.came(&lane("b"), gave(2, 2), now);
        assert_eq!(plan(&mut lanes, 4, now), [("a".to_owned(), 4)]);
        let busy = Load { running: HashMap::from([("f".to_owned(), 4)]), ..worker(1, 4) };
        assert!(lanes.plan(&[busy], now).is_empty());
    }

    #[test]
    fn where_one_came_that_was_lost_there_may_be_more() {
        let now = Instant::now();
        let mut lanes = Lanes::new(&TenantLimits::default(), now);
        lanes.heard(&lane("a"), now);
        plan(&mut lanes, 9, now);
        lanes.came(&lane("a"), gave(9, 9), now);
        assert!(plan(&mut lanes, 9, now).is_empty());
        lanes.came(&lane("a"), Gave { again: true, ..gave(9, 9) }, now);
        assert_eq!(plan(&mut lanes, 9, now), [("a".to_owned(), 9)]);
    }

    #[test]
    fn a_full_lane_is_not_asked_for_what_is_heard_of_but_for_what_was_freed() {
        let now = Instant::now();
        let mut lanes = Lanes::new(&TenantLimits::default(), now);
        lanes.heard(&lane("a"), now);
        plan(&mut lanes, 9, now);
        lanes.came(&lane("a"), Gave { behind: 7, full: true, ..gave(1, 1) }, now);
        lanes.heard(&lane("a"), now);
        assert!(plan(&mut lanes, 9, now).is_empty());
        lanes.freed(&lane("a"));
        assert_eq!(plan(&mut lanes, 9, now), [("a".to_owned(), 9)]);
        // Nor is it forgotten where others free something.
        lanes.came(&lane("a"), Gave { full: true, ..gave(1, 0) }, now);
        assert_eq!(plan(&mut lanes, 9, now + LONGEST_REST).len(), 1);
    }

    #[test]
    fn lanes_without_runs_are_forgotten_and_those_heard_of_meanwhile_are_not() {
        let then = Instant::now();
        let asked = then + POLL;
        let mut lanes = Lanes::new(&TenantLimits::default(), then);
        lanes.heard(&lane("old"), then);
        lanes.heard(&lane("new"), asked);
        lanes.saw(BTreeMap::new(), asked, asked);
        assert_eq!(plan(&mut lanes, 9, asked + LONGEST_REST), [("new".to_owned(), 9)]);
    }
}
