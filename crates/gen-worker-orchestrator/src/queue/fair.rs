//! Which waiting run is next, so that everybody who waits is served by weight: first among tenants, then among a tenant's
//! functions, then first come first served.
//!
//! It is start-time fair queueing (Goyal, Vin and Cheng, 1996): each lane has a virtual time that grows by `1 / weight`
//! for every run it is given, the lane whose time is least is next, and a lane that was empty starts at the time of
//! the lane that was served last, so that nobody saves up a share by not asking.

use std::collections::{BTreeMap, HashMap};
#[cfg(feature = "nats")]
use std::{cmp::Reverse, collections::BinaryHeap};

/// What one run costs a lane of weight 1.
const COST: u64 = 1 << 20;

/// The largest weight: beyond it a run would cost too little to be counted apart.
pub(crate) const MAX_WEIGHT: u32 = 10_000;

/// Lanes that are remembered, before those that are empty and owe at most one run are forgotten.
const MAX_LANES: usize = 1024;

/// Shares by name; who is not named has 1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights(HashMap<String, u32>);

impl Weights {
    /// The weight of each name: 1 to 10,000. What is outside is brought inside.
    pub fn new(weights: impl IntoIterator<Item = (String, u32)>) -> Self {
        Self(weights.into_iter().map(|(name, weight)| (name, weight.clamp(1, MAX_WEIGHT))).collect())
    }

    fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(1).into()
    }
}

/// Something with a share: a tenant, or one of its functions.
#[derive(Debug)]
struct Lane<T> {
    time: u64,
    content: T,
}

/// Lanes that are served by their weights.
#[derive(Debug)]
struct Lanes<T> {
    lanes: BTreeMap<String, Lane<T>>,
    /// The virtual time of the lane that was served last.
    clock: u64,
    /// When there are more lanes, it is looked which can be forgotten.
    crowded: usize,
}

/// What lanes are made of.
pub(crate) trait Content: Default {
    /// The place of the run that came first; `None`: nothing waits.
    fn first(&self) -> Option<u64>;
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self { lanes: BTreeMap::new(), clock: 0, crowded: MAX_LANES }
    }
}

impl<T: Content> Lanes<T> {
    /// The lane of this name, for something to be put in.
    fn enter(&mut self, name: &str) -> &mut T {
        let clock = self.clock;
        if !self.lanes.contains_key(name) {
            if self.lanes.len() > self.crowded {
                self.lanes.retain(|_, lane| lane.content.first().is_some() || lane.time > clock + COST);
                self.crowded = MAX_LANES.max(2 * self.lanes.len());
            }
            self.lanes.insert(name.to_owned(), Lane { time: clock, content: T::default() });
        }
        let lane = self.lanes.get_mut(name).expect("it is there or was just made");
        if lane.content.first().is_none() {
            lane.time = lane.time.max(clock);
        }
        &mut lane.content
    }

    /// The lane that is next among those that `may` be served; of several, the one whose first run came first.
    fn next<'a, R>(&'a self, mut may: impl FnMut(&'a str, &'a T) -> Option<R>) -> Option<R> {
        let mut best: Option<((u64, u64), R)> = None;
        for (name, lane) in &self.lanes {
            let Some(place) = lane.content.first() else { continue };
            let rank = (lane.time, place);
            if best.as_ref().is_none_or(|(least, _)| rank < *least)
                && let Some(found) = may(name, &lane.content)
            {
                best = Some((rank, found));
            }
        }
        best.map(|(_, found)| found)
    }

    fn charge(&mut self, name: &str, weight: u64) {
        if let Some(lane) = self.lanes.get_mut(name) {
            self.clock = self.clock.max(lane.time);
            lane.time += COST / weight;
        }
    }
}

/// The runs of one function of one tenant, by their place.
type Runs = BTreeMap<u64, String>;

impl Content for Runs {
    fn first(&self) -> Option<u64> {
        self.keys().next().copied()
    }
}

/// How many runs may wait in a lane, of an engine that keeps them elsewhere and has to ask for them.
#[cfg(feature = "nats")]
impl Content for usize {
    fn first(&self) -> Option<u64> {
        (*self > 0).then_some(0)
    }
}

impl<T: Content> Content for Lanes<T> {
    fn first(&self) -> Option<u64> {
        self.lanes.values().filter_map(|lane| lane.content.first()).min()
    }
}

/// Where a run stands in line.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spot<'a> {
    /// Whose it is; nobody's in particular is a tenant too, the empty one.
    pub(crate) tenant: &'a str,
    pub(crate) function: &'a str,
    /// When it came, as a number that grows.
    pub(crate) place: u64,
}

/// The runs that may start, in the order in which they should.
#[derive(Debug, Default)]
pub(crate) struct FairOrder<T = Runs> {
    tenants: Lanes<Lanes<T>>,
    tenant_weights: Weights,
    function_weights: Weights,
}

impl<T: Content> FairOrder<T> {
    pub(crate) fn new(tenant_weights: Weights, function_weights: Weights) -> Self {
        Self { tenants: Lanes::default(), tenant_weights, function_weights }
    }

    /// A run is served, at the cost of its tenant and function.
    fn charge(&mut self, tenant: &str, function: &str) {
        if let Some(lane) = self.tenants.lanes.get_mut(tenant) {
            lane.content.charge(function, self.function_weights.of(function));
        }
        self.tenants.charge(tenant, self.tenant_weights.of(tenant));
    }
}

impl FairOrder {
    pub(crate) fn insert(&mut self, at: Spot<'_>, run_id: &str) {
        let runs = self.tenants.enter(at.tenant).enter(at.function);
        runs.insert(at.place, run_id.to_owned());
    }

    /// Takes a run out without serving it; nothing happens if it is not in line.
    pub(crate) fn remove(&mut self, at: Spot<'_>) {
        if let Some(tenant) = self.tenants.lanes.get_mut(at.tenant)
            && let Some(function) = tenant.content.lanes.get_mut(at.function)
        {
            function.content.remove(&at.place);
        }
    }

    /// The run that should be served next, of the tenants and functions that `may` be.
    pub(crate) fn next<'a>(
        &'a self,
        may_tenant: impl Fn(&str) -> bool,
        may_function: impl Fn(&str) -> bool,
    ) -> Option<&'a str> {
        let first = |function: &str, runs: &'a Runs| {
            if may_function(function) { runs.values().next().map(String::as_str) } else { None }
        };
        self.tenants.next(|tenant, functions| if may_tenant(tenant) { functions.next(first) } else { None })
    }

    /// Takes a run out to serve it, at the cost of its tenant and function.
    pub(crate) fn take(&mut self, at: Spot<'_>) {
        self.remove(at);
        self.charge(at.tenant, at.function);
    }

    /// The runs of each function that wait, and the place of the one that came first.
    pub(crate) fn by_function(&self) -> impl Iterator<Item = (&str, usize, &str)> {
        let functions = self.tenants.lanes.values().flat_map(|tenant| &tenant.content.lanes);
        functions.filter_map(|(function, lane)| {
            let oldest = lane.content.values().next()?;
            Some((function.as_str(), lane.content.len(), oldest.as_str()))
        })
    }
}

/// The shares of lanes whose runs are elsewhere: how many each is to be asked for.
#[cfg(feature = "nats")]
pub(crate) type Shares = FairOrder<usize>;

/// A lane, and how many runs it is to be asked for.
#[cfg(feature = "nats")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) function: &'a str,
    pub(crate) runs: usize,
    /// The function's virtual time when it has them.
    time: u64,
    left: usize,
}

#[cfg(feature = "nats")]
impl Shares {
    /// Learns how many runs may wait in a lane.
    pub(crate) fn learn(&mut self, tenant: &str, function: &str, waiting: usize) {
        if waiting > 0 {
            *self.tenants.enter(tenant).enter(function) = waiting;
        } else if let Some(tenant) = self.tenants.lanes.get_mut(tenant)
            && let Some(function) = tenant.content.lanes.get_mut(function)
        {
            function.content = 0;
        }
    }

    /// How many runs may wait in a lane.
    pub(crate) fn waiting(&self, tenant: &str, function: &str) -> usize {
        let lanes = self.tenants.lanes.get(tenant).map(|tenant| &tenant.content.lanes);
        lanes.and_then(|lanes| lanes.get(function)).map_or(0, |function| function.content)
    }

    /// Shares out at most so many places in fair order, as if all came that may wait. `place` finds a place for a
    /// function's run; once it found none, there is none for this function.
    pub(crate) fn plan(&self, most: usize, mut place: impl FnMut(&str) -> bool) -> Vec<Share<'_>> {
        let mut tenants: Vec<(&str, Vec<Share<'_>>)> = Vec::new();
        let mut next = BinaryHeap::new();
        for (name, tenant) in self.tenants.lanes.iter().filter(|(_, tenant)| tenant.content.first().is_some())
        {
            let functions = tenant.content.lanes.iter().filter(|(_, lane)| lane.content > 0);
            let shares = functions.map(|(function, lane)| {
                let (time, left) = (lane.time, lane.content);
                Share { tenant: name, function, runs: 0, time, left }
            });
            next.push(Reverse((tenant.time, tenants.len())));
            tenants.push((name, shares.collect()));
        }
        let mut given = 0;
        while given < most
            && let Some(Reverse((time, index))) = next.pop()
        {
            let (tenant, shares) = &mut tenants[index];
            let waiting = |share: &&mut Share<'_>| share.left > 0;
            while let Some(share) = shares.iter_mut().filter(waiting).min_by_key(|share| share.time) {
                if place(share.function) {
                    share.runs += 1;
                    share.left -= 1;
                    share.time += COST / self.function_weights.of(share.function);
                    next.push(Reverse((time + COST / self.tenant_weights.of(tenant), index)));
                    given += 1;
                    break;
                }
                share.left = 0;
            }
        }
        let shares = tenants.into_iter().flat_map(|(_, shares)| shares);
        shares.filter(|share| share.runs > 0).collect()
    }

    /// Runs of a lane came.
    pub(crate) fn came(&mut self, tenant: &str, function: &str, runs: usize) {
        (0..runs).for_each(|_| self.charge(tenant, function));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `rounds` runs, each tenant asking for `f` and `g` again and again, and counts who was served.
    fn shares(order: &mut FairOrder, tenants: &[&str], rounds: u64) -> HashMap<(String, String), u64> {
        let mut place = 0;
        let mut served = HashMap::new();
        let mut waiting = HashMap::new();
        let mut ask = |order: &mut FairOrder,
                       waiting: &mut HashMap<String, (String, String, u64)>,
                       t: &str,
                       f: &str| {
            place += 1;
            order.insert(Spot { tenant: t, function: f, place }, &place.to_string());
            waiting.insert(place.to_string(), (t.to_owned(), f.to_owned(), place));
        };
        for tenant in tenants {
            for function in ["f", "g"] {
                ask(order, &mut waiting, tenant, function);
            }
        }
        for _ in 0..rounds {
            let run_id = order.next(|_| true, |_| true).unwrap().to_owned();
            let (tenant, function, place) = waiting.remove(&run_id).unwrap();
            order.take(Spot { tenant: &tenant, function: &function, place });
            ask(order, &mut waiting, &tenant, &function);
            *served.entry((tenant, function)).or_default() += 1;
        }
        served
    }

    #[test]
    fn shares_come_to_the_weights_whatever_they_are() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..30 {
            let tenants = ["a", "b", "c", "d"];
            let mut draw = |names: &[&str]| -> Vec<(String, u32)> {
                names.iter().map(|name| ((*name).to_owned(), random.u32(1..20))).collect()
            };
            let (tenant_weights, function_weights) = (draw(&tenants), draw(&["f", "g"]));
            let mut order =
                FairOrder::new(Weights::new(tenant_weights.clone()), Weights::new(function_weights.clone()));
            let rounds = 4000;
            let served = shares(&mut order, &tenants, rounds);
            let total = |weights: &[(String, u32)]| weights.iter().map(|(_, w)| f64::from(*w)).sum::<f64>();
            for (tenant, tenant_weight) in &tenant_weights {
                for (function, function_weight) in &function_weights {
                    let due = rounds as f64 * f64::from(*tenant_weight) / total(&tenant_weights)
                        * f64::from(*function_weight)
                        / total(&function_weights);
                    let got = served.get(&(tenant.clone(), function.clone())).copied().unwrap_or(0) as f64;
                    assert!((got - due).abs() <= 0.02 * due + 3.0, "{tenant}/{function}: {got}, due {due}");
                }
            }
        }
    }

    #[test]
    fn nobody_waits_behind_another_tenants_backlog() {
        let mut order = FairOrder::default();
        let many = |place| Spot { tenant: "many", function: "f", place };
        (0..1000).for_each(|place| order.insert(many(place), "many"));
        (0..500).for_each(|place| order.take(many(place)));
        order.insert(Spot { tenant: "one", function: "f", place: 1000 }, "one");
        order.take(many(500));
        assert_eq!(order.next(|_| true, |_| true), Some("one"));
    }

    #[test]
    fn who_did_not_ask_has_saved_nothing_up() {
        let mut order = FairOrder::default();
        let spot = |tenant, place| Spot { tenant, function: "f", place };
        order.insert(spot("late", 0), "late");
        order.take(spot("late", 0));
        for place in 1..100 {
            order.insert(spot("busy", place), "busy");
            order.take(spot("busy", place));
        }
        for place in 100..120 {
            order.insert(spot("busy", place), "busy");
            order.insert(spot("late", 1000 + place), "late");
        }
        let mut served = Vec::new();
        for (busy, late) in (100..110).zip(1100..1110) {
            for _ in 0..2 {
                let next = order.next(|_| true, |_| true).unwrap().to_owned();
                order.take(if next == "busy" { spot("busy", busy) } else { spot("late", late) });
                served.push(next);
            }
        }
        assert_eq!(served.iter().filter(|tenant| *tenant == "late").count(), 10);
    }

    /// Asks each lane as planned, `places` at a time, and counts what came. `waiting` is what really waits.
    #[cfg(feature = "nats")]
    fn ask(
        shares: &mut Shares,
        waiting: &mut HashMap<(String, String), usize>,
        places: usize,
    ) -> HashMap<(String, String), usize> {
        let mut came = HashMap::new();
        let mut left = places;
        let plan = shares.plan(places, |_| {
            let free = left > 0;
            left -= usize::from(free);
            free
        });
        let plan: Vec<_> =
            plan.iter().map(|s| (s.tenant.to_owned(), s.function.to_owned(), s.runs)).collect();
        assert!(plan.iter().map(|(_, _, runs)| runs).sum::<usize>() <= places);
        for (tenant, function, asked) in plan {
            let lane = (tenant.clone(), function.clone());
            let there = waiting.get_mut(&lane).unwrap();
            let runs = asked.min(*there);
            *there -= runs;
            shares.came(&tenant, &function, runs);
            shares.learn(&tenant, &function, *there);
            came.insert(lane, runs);
        }
        came
    }

    #[cfg(feature = "nats")]
    #[test]
    fn places_are_shared_by_weight_however_many_are_free_at_once() {
        let mut random = fastrand::Rng::with_seed(11);
        for _ in 0..30 {
            let mut draw = |names: [&str; 2]| names.map(|name| (name.to_owned(), random.u32(1..20)));
            let (tenants, functions) = (draw(["a", "b"]), draw(["f", "g"]));
            let mut shares = Shares::new(Weights::new(tenants.clone()), Weights::new(functions.clone()));
            let mut waiting = HashMap::new();
            for (tenant, _) in &tenants {
                for (function, _) in &functions {
                    shares.learn(tenant, function, 100_000);
                    waiting.insert((tenant.clone(), function.clone()), 100_000);
                }
            }
            let (mut total, mut got) = (0.0, HashMap::<_, f64>::new());
            while total < 4000.0 {
                for (lane, runs) in ask(&mut shares, &mut waiting, random.usize(1..40)) {
                    total += runs as f64;
                    *got.entry(lane).or_default() += runs as f64;
                }
            }
            let part =
                |of: &[(String, u32); 2], index: usize| f64::from(of[index].1) / f64::from(of[0].1 + of[1].1);
            for (t, (tenant, _)) in tenants.iter().enumerate() {
                for (f, (function, _)) in functions.iter().enumerate() {
                    let due = total * part(&tenants, t) * part(&functions, f);
                    let got = got[&(tenant.clone(), function.clone())];
                    assert!((got - due).abs() <= 0.02 * due + 3.0, "{tenant}/{function}: {got}, due {due}");
                }
            }
        }
    }

    #[cfg(feature = "nats")]
    #[test]
    fn nobody_starves_whatever_waits_and_comes() {
        let mut random = fastrand::Rng::with_seed(13);
        for _ in 0..100 {
            let names = ["a", "b", "c", "d", "e"];
            let mut shares = Shares::default();
            let mut waiting: HashMap<_, _> = HashMap::new();
            for tenant in names {
                for function in ["f", "g"] {
                    let there = random.usize(0..30);
                    // What is heard may be more than there is.
                    shares.learn(tenant, function, there + random.usize(0..30));
                    waiting.insert((tenant.to_owned(), function.to_owned()), there);
                }
            }
            // Nothing is lost: what waits comes, if only as many places are free as there are lanes that may have none.
            let all: usize = waiting.values().sum();
            let mut came = 0;
            for _ in 0..all + waiting.len() {
                came += ask(&mut shares, &mut waiting, 1).values().sum::<usize>();
            }
            assert_eq!(came, all);
            assert!(shares.plan(9, |_| true).is_empty());
        }
    }

    #[cfg(feature = "nats")]
    #[test]
    fn a_lane_that_was_empty_has_saved_nothing_up_and_is_not_held_up() {
        let mut shares = Shares::default();
        shares.learn("busy", "f", 10_000);
        let lane = |tenant: &str| (tenant.to_owned(), "f".to_owned());
        let mut waiting = HashMap::from([(lane("busy"), 10_000), (lane("late"), 0)]);
        for _ in 0..100 {
            ask(&mut shares, &mut waiting, 10);
        }
        waiting.insert(lane("late"), 1000);
        shares.learn("late", "f", 1000);
        // It is among the next two, and has its half from then on.
        assert_eq!(ask(&mut shares, &mut waiting, 2)[&lane("late")], 1);
        let came = ask(&mut shares, &mut waiting, 100);
        assert_eq!((came[&lane("busy")], came[&lane("late")]), (50, 50));
    }

    #[cfg(feature = "nats")]
    #[test]
    fn a_function_without_a_place_holds_up_no_other() {
        let mut shares = Shares::default();
        shares.learn("a", "f", 5);
        shares.learn("a", "g", 5);
        shares.learn("b", "f", 5);
        let plan = shares.plan(9, |function| function == "g");
        assert_eq!(plan.iter().map(|s| (s.tenant, s.function, s.runs)).collect::<Vec<_>>(), [("a", "g", 5)]);
    }

    #[test]
    fn within_a_function_the_first_is_first() {
        let mut order = FairOrder::default();
        for place in [3, 1, 2] {
            order.insert(Spot { tenant: "", function: "f", place }, &place.to_string());
        }
        assert_eq!(order.next(|_| true, |_| true), Some("1"));
        assert_eq!(order.next(|_| true, |function| function != "f"), None);
        assert_eq!(order.next(|tenant| !tenant.is_empty(), |_| true), None);
    }

    #[test]
    fn tenants_that_left_are_forgotten() {
        let mut order = FairOrder::default();
        for place in 0..3 * MAX_LANES as u64 {
            let tenant = place.to_string();
            let at = Spot { tenant: &tenant, function: "f", place };
            order.insert(at, "r");
            order.take(at);
        }
        assert!(order.tenants.lanes.len() <= MAX_LANES + 1, "{}", order.tenants.lanes.len());
    }
}
