//! Each decision by example, then thousands of random histories.

use std::collections::BTreeMap;

use super::*;

const fn host(host: u64) -> Bytes {
    Bytes { host, device: 0 }
}

/// A model on the processor, which cannot be warm.
const fn plain(bytes: u64) -> Footprint {
    Footprint { resident: host(bytes), warm: 0 }
}

fn now() -> Instant {
    Instant::now()
}

const fn on_device(device: u64) -> Footprint {
    Footprint { resident: Bytes { host: 0, device }, warm: 0 }
}

const fn warmable(resident: u64, warm: u64) -> Footprint {
    Footprint { resident: host(resident), warm }
}

/// A shell that carries every step out at once, and loads models of the size they were said to have.
struct Prompt {
    residency: Residency<u32>,
    now: Instant,
    sizes: BTreeMap<u32, Footprint>,
    loads: Vec<u32>,
    evictions: Vec<(u32, Tier)>,
    granted: Vec<LeaseId>,
    refused: Vec<(LeaseId, Refusal)>,
    failed: Vec<LeaseId>,
}

impl Prompt {
    fn new(budget: Bytes) -> Self {
        Self {
            residency: Residency::new(budget.host, &[budget.device]),
            now: now(),
            sizes: BTreeMap::new(),
            loads: vec![],
            evictions: vec![],
            granted: vec![],
            refused: vec![],
            failed: vec![],
        }
    }

    /// With several devices.
    fn on(devices: &[u64]) -> Self {
        Self { residency: Residency::new(100, devices), ..Self::new(host(0)) }
    }

    fn ask(&mut self, model: u32, footprint: Footprint, holder: &str) -> LeaseId {
        self.sizes.entry(model).or_insert(footprint);
        let (id, steps) = self.residency.ask(&model, footprint, holder.to_owned(), self.now);
        self.carry_out(steps);
        id
    }

    fn release(&mut self, id: LeaseId) {
        let steps = self.residency.release(id);
        self.carry_out(steps);
    }

    /// One use that ends at once. Says whether the model was there.
    fn is_hit(&mut self, model: u32, footprint: Footprint) -> bool {
        let loads = self.loads.len();
        let id = self.ask(model, footprint, "");
        assert_eq!(self.granted.pop(), Some(id));
        self.release(id);
        self.loads.len() == loads
    }

    fn carry_out(&mut self, steps: Vec<Step<u32>>) {
        for step in steps {
            let more = match step {
                Step::Load(model) => {
                    self.loads.push(model);
                    self.residency.loaded(&model, self.sizes[&model], self.now)
                }
                Step::Evict(model, tier) => {
                    self.evictions.push((model, tier));
                    self.residency.evicted(&model, tier)
                }
                Step::Grant(id) => {
                    self.granted.push(id);
                    vec![]
                }
                Step::Refuse(id, _, refusal) => {
                    self.refused.push((id, refusal));
                    vec![]
                }
                Step::Fail(id) => {
                    self.failed.push(id);
                    vec![]
                }
            };
            self.carry_out(more);
        }
    }
}

#[test]
fn the_least_recently_used_goes_and_a_lease_pins() {
    let mut shell = Prompt::new(host(3));
    let pinned = shell.ask(0, plain(1), "a");
    assert!(!shell.is_hit(1, plain(1)) && !shell.is_hit(2, plain(1)) && shell.is_hit(1, plain(1)));
    assert!(!shell.is_hit(3, plain(1)));
    assert_eq!(shell.evictions, [(2, Tier::Disk)]);
    assert!(!shell.is_hit(4, plain(2)));
    assert_eq!(shell.evictions[1..], [(1, Tier::Disk), (3, Tier::Disk)], "0 is older, and leased");
    shell.release(pinned);
    assert_eq!(shell.residency.used().total(), host(3));
    assert_eq!(shell.residency.resident(), [&4, &0], "the end of a lease is a use");
}

#[test]
fn what_leaves_stays_warm_while_that_is_enough() {
    let mut shell = Prompt::new(host(10));
    shell.is_hit(1, warmable(5, 3));
    shell.is_hit(2, warmable(5, 3));
    shell.is_hit(3, plain(2));
    assert_eq!((&shell.evictions[..], shell.residency.used().total()), (&[(1, Tier::Warm)][..], host(10)));
    shell.is_hit(4, plain(4));
    assert_eq!(shell.evictions[1..], [(1, Tier::Disk), (2, Tier::Warm)]);
    assert!(!shell.is_hit(2, warmable(5, 3)), "warm is not resident");
}

#[test]
fn a_device_is_freed_without_leaving_main_memory() {
    let on_device = |device| Footprint { resident: Bytes { host: 2, device }, warm: 2 };
    let mut shell = Prompt::new(Bytes { host: 5, device: 10 });
    shell.is_hit(1, on_device(6));
    shell.is_hit(2, on_device(6));
    assert_eq!(
        (&shell.evictions[..], shell.residency.used().total()),
        (&[(1, Tier::Warm)][..], Bytes { host: 4, device: 6 })
    );
    shell.is_hit(3, on_device(6));
    assert_eq!(shell.evictions[1..], [(1, Tier::Disk), (2, Tier::Warm)], "main memory was short too");
}

#[test]
fn what_can_never_fit_is_refused_with_the_numbers() {
    let mut shell = Prompt::new(host(10));
    let id = shell.ask(1, plain(11), "a");
    let too_large = Refusal::TooLarge { needed: host(11), budget: host(10) };
    assert_eq!(shell.refused, [(id, too_large)]);
    let held = shell.ask(2, plain(6), "a");
    let beside = shell.ask(3, plain(5), "a");
    let refusal = Refusal::BesideOwn { needed: host(5), held: host(6), budget: host(10) };
    assert_eq!(shell.refused[1..], [(beside, refusal)]);
    let other = shell.ask(3, plain(5), "b");
    assert_eq!(shell.granted, [held], "another run's lease may end");
    shell.release(held);
    assert_eq!((shell.granted.last(), shell.evictions.last()), (Some(&other), Some(&(2, Tier::Disk))));
}

#[test]
fn what_was_measured_too_large_is_measured_anew_after_a_while() {
    let mut shell = Prompt::new(host(10));
    shell.sizes.insert(1, plain(11));
    let ask = |shell: &mut Prompt| shell.ask(1, plain(1), "a");
    let refused = Refusal::TooLarge { needed: host(11), budget: host(10) };
    let first = ask(&mut shell);
    assert_eq!((&shell.refused[..], &shell.loads[..]), (&[(first, refused)][..], &[1, 1][..]));
    shell.sizes.insert(1, plain(3));
    shell.now += BELIEVED - Duration::from_secs(1);
    let again = ask(&mut shell);
    assert_eq!((&shell.refused[1..], shell.loads.len()), (&[(again, refused)][..], 2), "it is believed");
    shell.now += Duration::from_secs(1);
    let later = ask(&mut shell);
    assert_eq!((&shell.granted[..], shell.residency.used().total()), (&[later][..], host(3)));
}

#[test]
fn nobody_is_refused_for_what_others_took_during_one_load() {
    let mut residency = Residency::new(10, &[0]);
    let now = Instant::now();
    let (id, steps) = residency.ask(&1, plain(3), String::new(), now);
    assert_eq!(steps, [Step::Load(1)]);
    assert_eq!(residency.loaded(&1, plain(11), now), [Step::Evict(1, Tier::Disk)]);
    assert_eq!(residency.evicted(&1, Tier::Disk), [Step::Load(1)]);
    assert_eq!(residency.loaded(&1, plain(4), now), [Step::Grant(id)]);
    assert_eq!(residency.used().total(), host(4));
}

#[test]
fn what_was_measured_too_large_beside_the_runs_own_is_too() {
    let mut shell = Prompt::new(host(10));
    shell.sizes.insert(2, plain(8));
    shell.is_hit(2, plain(1));
    let held = shell.ask(1, plain(3), "a");
    let refused = shell.ask(2, plain(1), "a");
    assert_eq!(shell.refused.last().map(|(id, _)| *id), Some(refused));
    shell.now += BELIEVED;
    shell.sizes.insert(2, plain(2));
    let granted = shell.ask(2, plain(1), "a");
    assert_eq!(shell.granted, [held, granted]);
}

#[test]
fn each_device_has_its_budget_and_models_go_where_there_is_room() {
    let mut shell = Prompt::on(&[10, 12]);
    let where_is = |shell: &Prompt, model| shell.residency.device(&model);
    let first = shell.ask(1, on_device(8), "a");
    assert_eq!(where_is(&shell, 1), 1, "the one with most room");
    shell.is_hit(2, on_device(8));
    assert_eq!((where_is(&shell, 2), shell.residency.used().total().device), (0, 16));
    assert!(shell.is_hit(2, on_device(8)), "it is found where it is");
    shell.is_hit(3, on_device(3));
    assert_eq!((where_is(&shell, 3), shell.evictions.len()), (1, 0), "there nothing has to go");
    shell.is_hit(4, on_device(9));
    assert_eq!((where_is(&shell, 4), &shell.evictions[..]), (0, &[(2, Tier::Disk)][..]), "1 is leased");
    let none = shell.ask(5, on_device(13), "b");
    let too_large =
        Refusal::TooLarge { needed: on_device(13).resident, budget: Bytes { host: 100, device: 12 } };
    assert_eq!(shell.refused, [(none, too_large)]);
    shell.release(first);
    shell.is_hit(6, on_device(11));
    assert_eq!(where_is(&shell, 6), 1, "only there");
    let used = shell.residency.used();
    assert_eq!((used.of(0).device, used.of(1).device), (9, 11));
}

#[test]
fn a_run_may_hold_models_on_several_devices() {
    let mut shell = Prompt::on(&[10, 10]);
    let held = [shell.ask(1, on_device(8), "a"), shell.ask(2, on_device(8), "a")];
    assert_eq!((shell.granted.clone(), shell.refused.len()), (held.to_vec(), 0));
    let third = shell.ask(3, on_device(8), "a");
    assert_eq!(shell.refused.last().map(|(id, _)| *id), Some(third), "it holds both");
}

#[test]
fn those_who_wait_let_pass_what_fits() {
    let mut shell = Prompt::new(host(10));
    let held = shell.ask(1, plain(6), "a");
    let large = shell.ask(2, plain(6), "b");
    let small = shell.ask(3, plain(4), "a");
    assert_eq!(shell.granted, [held, small]);
    shell.release(held);
    assert_eq!(shell.granted.last(), Some(&large));
}

#[test]
fn one_load_serves_all_who_wait() {
    let mut residency = Residency::new(10, &[0]);
    let (one, steps) = residency.ask(&1, plain(4), "a".into(), now());
    assert_eq!(steps, [Step::Load(1)]);
    let (two, steps) = residency.ask(&1, plain(4), "b".into(), now());
    assert_eq!(steps, []);
    let (other, steps) = residency.ask(&2, plain(4), "c".into(), now());
    assert_eq!(steps, [], "one load at a time");
    assert_eq!(residency.loaded(&1, plain(4), now()), [Step::Grant(one), Step::Grant(two), Step::Load(2)]);
    assert_eq!(residency.release(other), []);
    assert_eq!(residency.loaded(&2, plain(4), now()), [], "nobody waits any longer; it stays");
    assert_eq!((residency.resident().len(), residency.used().total()), (2, host(8)));
}

#[test]
fn those_who_have_a_model_and_those_who_wait_are_listed() {
    let mut shell = Prompt::new(host(10));
    let first = shell.ask(1, plain(6), "b");
    shell.ask(1, plain(6), "a");
    shell.ask(2, plain(6), "c");
    let list = |shell: &Prompt| -> Vec<(u32, String, String)> {
        let mut list: Vec<_> = shell
            .residency
            .leases()
            .into_iter()
            .map(|(model, (held, waiting))| (*model, held.join(","), waiting.join(",")))
            .collect();
        list.sort();
        list
    };
    assert_eq!(list(&shell), [(1, "a,b".into(), String::new()), (2, String::new(), "c".into())]);
    shell.release(first);
    assert_eq!(list(&shell)[0], (1, "a".into(), String::new()));
}

#[test]
fn larger_than_announced_makes_room_or_waits() {
    let mut shell = Prompt::new(host(10));
    shell.is_hit(1, plain(5));
    shell.sizes.insert(2, plain(8));
    assert!(!shell.is_hit(2, plain(4)));
    assert_eq!((&shell.evictions[..], shell.residency.used().total()), (&[(1, Tier::Disk)][..], host(8)));
    let held = shell.ask(3, plain(5), "a");
    let waits = shell.ask(2, plain(4), "b");
    assert_eq!(shell.granted, [held], "its size is remembered");
    shell.sizes.insert(4, plain(6));
    let grown = shell.ask(4, plain(5), "c");
    assert_eq!(shell.evictions.last(), Some(&(4, Tier::Disk)), "loaded in vain");
    shell.release(held);
    assert_eq!(shell.granted.last(), Some(&grown));
    shell.release(grown);
    assert_eq!(shell.granted.last(), Some(&waits));
    shell.sizes.insert(5, plain(11));
    let never = shell.ask(5, plain(1), "c");
    shell.release(waits);
    assert_eq!(shell.refused, [(never, Refusal::TooLarge { needed: host(11), budget: host(10) })]);
}

#[test]
fn out_of_memory_evicts_and_tries_once_more() {
    let mut residency = Residency::new(10, &[0]);
    residency.ask(&1, plain(2), String::new(), now());
    let [Step::Grant(idle)] = residency.loaded(&1, plain(2), now())[..] else { panic!("it is granted") };
    residency.release(idle);
    let (id, steps) = residency.ask(&2, plain(2), String::new(), now());
    assert_eq!(steps, [Step::Load(2)]);
    assert_eq!(residency.failed(&2, LoadFailure::OutOfMemory), [Step::Evict(1, Tier::Disk)]);
    assert_eq!(residency.evicted(&1, Tier::Disk), [Step::Load(2)]);
    assert_eq!(residency.failed(&2, LoadFailure::OutOfMemory), [Step::Fail(id)]);
    let (id, _) = residency.ask(&2, plain(2), String::new(), now());
    assert_eq!(residency.failed(&2, LoadFailure::OutOfMemory), [Step::Fail(id)], "nothing to evict");
    assert_eq!(residency.used().total(), host(0));
}

#[test]
fn out_of_memory_waits_for_what_is_already_going() {
    let mut residency = Residency::new(10, &[0]);
    residency.ask(&1, plain(2), String::new(), now());
    let [Step::Grant(idle)] = residency.loaded(&1, plain(2), now())[..] else { panic!("it is granted") };
    residency.release(idle);
    let (_, steps) = residency.ask(&2, plain(2), String::new(), now());
    assert_eq!(steps, [Step::Load(2)]);
    assert_eq!(residency.unload(&1), Ok(vec![Step::Evict(1, Tier::Disk)]));
    assert_eq!(residency.failed(&2, LoadFailure::OutOfMemory), [], "it is tried again when 1 is gone");
    assert_eq!(residency.evicted(&1, Tier::Disk), [Step::Load(2)]);
}

#[test]
fn an_unload_forgets_what_was_measured() {
    let mut shell = Prompt::new(host(10));
    shell.sizes.insert(1, plain(11));
    let refused = shell.ask(1, plain(1), "a");
    assert_eq!(shell.refused.last().map(|(id, _)| *id), Some(refused));
    shell.sizes.insert(1, plain(2));
    assert_eq!(shell.residency.unload(&1), Ok(vec![]));
    assert!(!shell.is_hit(1, plain(1)) && shell.residency.used().total() == host(2));
}

#[test]
fn unloading_is_refused_while_leased() {
    let mut shell = Prompt::new(host(10));
    let (one, two) = (shell.ask(1, plain(1), "r2"), shell.ask(1, plain(1), "r1"));
    assert_eq!(shell.residency.unload(&1).unwrap_err(), ["r1", "r2"]);
    shell.release(one);
    shell.release(two);
    let steps = shell.residency.unload(&1).unwrap();
    shell.carry_out(steps);
    assert!(!shell.residency.is_in_memory(&1) && shell.residency.used().total() == host(0));
    assert_eq!(shell.residency.unload(&7), Ok(vec![]));
}

#[test]
fn sizes_of_so_many_models_are_remembered_and_no_more() {
    let mut shell = Prompt::new(host(1));
    for model in 0..3 * REMEMBERED as u32 {
        shell.is_hit(model, plain(1));
    }
    assert_eq!(shell.residency.models.len(), REMEMBERED);
}

/// What least-recently-used means, in its simplest form.
#[derive(Default)]
struct ExactLru(Vec<u32>);

impl ExactLru {
    fn is_hit(&mut self, model: u32, room: usize) -> bool {
        let found = self.0.iter().position(|held| *held == model);
        match found {
            Some(at) => drop(self.0.remove(at)),
            None if self.0.len() == room => drop(self.0.remove(0)),
            None => {}
        }
        self.0.push(model);
        found.is_some()
    }
}

#[test]
fn hits_are_those_of_exact_lru() {
    let weights: Vec<f64> = (1..=50).map(|rank| 1.0 / f64::from(rank)).collect();
    let all: f64 = weights.iter().sum();
    let mut random = fastrand::Rng::with_seed(6);
    let (mut shell, mut exact, mut hits) = (Prompt::new(host(10)), ExactLru::default(), 0);
    for _ in 0..20_000 {
        let mut left = random.f64() * all;
        let rank = weights.iter().position(|weight| {
            left -= weight;
            left <= 0.0
        });
        let model = rank.unwrap_or(49) as u32;
        let is_hit = shell.is_hit(model, plain(1));
        assert_eq!(is_hit, exact.is_hit(model, 10));
        hits += u32::from(is_hit);
    }
    assert!((9_000..14_000).contains(&hits), "{hits}");
}

/// A shell that carries steps out when chance says so, with loads that fail, run out of memory, or measure anything.
struct Chance {
    residency: Residency<u32>,
    now: Instant,
    random: fastrand::Rng,
    loading: Option<u32>,
    evicting: Vec<(u32, Tier)>,
    waiting: Vec<LeaseId>,
    granted: BTreeMap<LeaseId, u32>,
    wanted: BTreeMap<LeaseId, u32>,
    loads: u32,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let devices: Vec<u64> = match random.u64(0..4) {
            0 | 1 => vec![0],
            many => (1..many).map(|_| random.u64(5..20)).collect(),
        };
        Self {
            residency: Residency::new(random.u64(5..30), &devices),
            now: now(),
            random,
            loading: None,
            evicting: vec![],
            waiting: vec![],
            granted: BTreeMap::new(),
            wanted: BTreeMap::new(),
            loads: 0,
        }
    }

    fn footprint(&mut self) -> Footprint {
        let warm = self.random.u64(0..4);
        let device = if self.residency.budget().total().device > 0 { self.random.u64(0..8) } else { 0 };
        Footprint { resident: Bytes { host: warm + self.random.u64(0..8), device }, warm }
    }

    fn take(&mut self, steps: Vec<Step<u32>>) {
        for step in steps {
            match step {
                Step::Load(model) => {
                    assert!(self.evicting.is_empty(), "what goes has gone before a load begins");
                    assert_eq!(self.loading.replace(model), None, "one load at a time");
                    self.loads += 1;
                }
                Step::Evict(model, tier) => {
                    assert!(!self.granted.values().any(|leased| *leased == model), "a lease was evicted");
                    assert!(!self.evicting.iter().any(|(evicting, _)| *evicting == model));
                    self.evicting.push((model, tier));
                }
                Step::Grant(id) => {
                    assert!(self.waiting.contains(&id) || !self.granted.contains_key(&id));
                    self.waiting.retain(|waiting| *waiting != id);
                    self.granted.insert(id, self.wanted[&id]);
                }
                Step::Refuse(id, ..) | Step::Fail(id) => self.waiting.retain(|waiting| *waiting != id),
            }
        }
    }

    fn ask(&mut self) {
        let (model, estimate) = (self.random.u32(0..8), self.footprint());
        let holder = ["", "a", "b", "c"][self.random.usize(0..4)];
        let (id, steps) = self.residency.ask(&model, estimate, holder.to_owned(), self.now);
        self.wanted.insert(id, model);
        self.waiting.push(id);
        self.take(steps);
    }

    fn end_load(&mut self) {
        let Some(model) = self.loading.take() else { return };
        let steps = match self.random.u32(0..6) {
            0 => self.residency.failed(&model, LoadFailure::Other),
            1 => self.residency.failed(&model, LoadFailure::OutOfMemory),
            _ => {
                let measured = self.footprint();
                self.residency.loaded(&model, measured, now())
            }
        };
        self.take(steps);
    }

    fn end_eviction(&mut self) {
        if self.evicting.is_empty() {
            return;
        }
        let (model, tier) = self.evicting.swap_remove(self.random.usize(..self.evicting.len()));
        let left = if self.random.u32(0..10) == 0 { Tier::Disk } else { tier };
        let steps = self.residency.evicted(&model, left);
        self.take(steps);
    }

    fn release(&mut self) {
        let (held, waiting) = (self.granted.keys().copied(), self.waiting.iter().copied());
        let all: Vec<LeaseId> = held.chain(waiting).collect();
        if all.is_empty() {
            return;
        }
        let id = all[self.random.usize(..all.len())];
        self.granted.remove(&id);
        self.waiting.retain(|waiting| *waiting != id);
        let steps = self.residency.release(id);
        self.take(steps);
    }

    fn unload(&mut self) {
        let model = self.random.u32(0..8);
        let leased = self.granted.values().any(|held| *held == model);
        match self.residency.unload(&model) {
            Ok(steps) => {
                assert!(!leased);
                self.take(steps);
            }
            Err(holders) => assert!(!holders.is_empty() || self.residency.is_active(&model)),
        }
    }

    fn act(&mut self) {
        self.now += BELIEVED / 20;
        match self.random.u32(0..12) {
            0..4 => self.ask(),
            4..7 => self.release(),
            7..9 => self.end_load(),
            9..11 => self.end_eviction(),
            _ if self.random.bool() => self.unload(),
            _ => {
                let steps = self.residency.evict_idle();
                self.take(steps);
            }
        }
    }

    fn check(&self) {
        let residency = &self.residency;
        let charged = residency.models.values().fold(Memory::default(), |sum, model| sum.plus(model.charged));
        assert_eq!(residency.used(), charged, "bytes were lost");
        assert!(residency.used().fits_in(residency.budget()), "over the budget");
        assert_eq!(residency.leased(), self.granted.len());
        for model in self.granted.values() {
            assert_eq!(residency.models[model].state, State::Resident, "a lease was evicted");
        }
        let on_disk = residency.models.values().filter(|model| model.state == State::Disk);
        assert!(on_disk.into_iter().all(|model| model.charged == Memory::default()));
    }

    /// Everything ends; who waits gets an answer as soon as the leases of others are over.
    fn wind_up(mut self) -> u32 {
        while self.loading.is_some() || !self.evicting.is_empty() || !self.granted.is_empty() {
            self.end_load();
            self.end_eviction();
            let held: Vec<_> = self.granted.keys().copied().collect();
            for id in held {
                self.granted.remove(&id);
                let steps = self.residency.release(id);
                self.take(steps);
            }
            self.check();
        }
        assert!(self.waiting.is_empty(), "{} wait for ever", self.waiting.len());
        let steps = self.residency.evict_idle();
        self.take(steps);
        while !self.evicting.is_empty() {
            self.end_eviction();
        }
        assert_eq!(self.residency.used(), Memory::default(), "bytes were lost");
        self.loads
    }
}

#[test]
fn models_stay_within_their_budget() {
    let mut loads = 0;
    for seed in 0..3_000 {
        let mut chance = Chance::new(seed);
        for _ in 0..150 {
            chance.act();
            chance.check();
        }
        loads += chance.wind_up();
    }
    assert!(loads > 30_000, "{loads}");
}
