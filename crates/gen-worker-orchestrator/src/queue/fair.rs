//! Which waiting run is next, so that everybody who waits is served by weight: first among tenants, then among a tenant's
//! functions, then first come first served.
//!
//! It is start-time fair queueing (Goyal, Vin and Cheng, 1996): each lane has a virtual time that grows by `1 / weight`
//! for every run it is given, the lane whose time is least is next, and a lane that was empty starts at the time of
//! the lane that was served last, so that nobody saves up a share by not asking.

use std::collections::{BTreeMap, HashMap};

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
trait Content: Default {
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
pub(crate) struct FairOrder {
    tenants: Lanes<Lanes<Runs>>,
    tenant_weights: Weights,
    function_weights: Weights,
}

impl FairOrder {
    pub(crate) fn new(tenant_weights: Weights, function_weights: Weights) -> Self {
        Self { tenants: Lanes::default(), tenant_weights, function_weights }
    }

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
        let (tenant, function) = (self.tenant_weights.of(at.tenant), self.function_weights.of(at.function));
        if let Some(lane) = self.tenants.lanes.get_mut(at.tenant) {
            lane.content.charge(at.function, function);
        }
        self.tenants.charge(at.tenant, tenant);
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
