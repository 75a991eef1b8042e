//! Which models are in memory, which go to make room, and who waits: decisions only, on bytes that others measured.
//!
//! A model is on disk, loading, resident or evicting; one that was evicted may have left its weights in host memory, from
//! where it comes back cheaply (*warm*). One model is loaded at a time. A lease pins its model; what nobody leases goes when
//! room is needed, the least recently used first, and of that first what leaves it warm. A model that cannot be loaded until
//! leases end waits, and lets those pass that can: a run which holds one model and wants another must not wait for a third.
//!
//! A model is on one device, which is chosen when its load begins. One is loaded at a time, whichever the device: what it
//! takes is measured as what the process gains meanwhile.

mod plan;

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

use crate::budget::{Bytes, Footprint, MAX_DEVICES, Memory};

/// Models on disk whose measured sizes are remembered. A payload can name any number of models; each costs about 200 bytes.
const REMEMBERED: usize = 1024;

/// How long a size is believed because of which somebody is refused. What other runs and processes took while it was measured
/// is in it; a load in vain in so many minutes costs little, and a model that is refused for ever costs a restart.
pub(crate) const BELIEVED: Duration = Duration::from_secs(5 * 60);

/// Somebody who has or wants a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LeaseId(u64);

/// Who holds a lease: a run's id, or empty when it is no run.
pub(crate) type Holder = String;

/// Where an evicted model is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Its weights stay in main memory.
    Warm,
    /// Nothing of it stays in memory.
    Disk,
}

/// Why nobody gets the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It takes more than there is.
    TooLarge { needed: Bytes, budget: Bytes },
    /// It does not fit beside the models that the same run holds.
    BesideOwn { needed: Bytes, held: Bytes, budget: Bytes },
}

/// What has to be done next, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step<K> {
    /// Take the model out of memory, then say [`evicted`](Residency::evicted).
    Evict(K, Tier),
    /// Load the model, then say [`loaded`](Residency::loaded) or [`failed`](Residency::failed).
    Load(K),
    /// The lease is there.
    Grant(LeaseId),
    /// There will be no lease.
    Refuse(LeaseId, K, Refusal),
    /// There will be no lease, because the load failed.
    Fail(LeaseId),
}

/// Why a load gave no model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoadFailure {
    /// Memory ran out: it is tried once more after everything that nobody leases is gone.
    OutOfMemory,
    /// Anything else.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Disk,
    Warm,
    Loading,
    Resident,
    Evicting(Tier),
}

#[derive(Debug)]
struct Model {
    state: State,
    /// Where it is, or was last.
    device: usize,
    footprint: Footprint,
    /// What it was taken for when it was asked for last.
    estimate: Footprint,
    /// When its footprint was measured; `None`: it is the estimate.
    measured: Option<Instant>,
    /// What of the budget it has.
    charged: Memory,
    /// When it was used last, as a number that grows with each use.
    used: u64,
    /// Its last load ran out of memory.
    was_out_of_memory: bool,
    /// Its last load was measured larger than can ever be.
    was_too_large: bool,
}

struct Lease<K> {
    model: K,
    holder: Holder,
    is_granted: bool,
}

/// The one load that goes on.
enum Active<K> {
    MakingRoom(K),
    Loading(K),
    /// Loaded, and larger than what was charged for it.
    Settling(K),
}

/// Main memory and the devices.
pub(crate) struct Residency<K> {
    budget: Memory,
    /// How many devices there are; at least 1, which on the processor has no memory of its own.
    devices: usize,
    used: Memory,
    models: HashMap<K, Model>,
    leases: HashMap<LeaseId, Lease<K>>,
    queue: VecDeque<K>,
    active: Option<Active<K>>,
    uses: u64,
    last_lease: u64,
}

impl<K: Clone + Eq + Hash> Residency<K> {
    /// What models may take of main memory and of each device; beyond [`MAX_DEVICES`] none is used.
    pub(crate) fn new(host: u64, devices: &[u64]) -> Self {
        let mut budget = Memory { host, ..Memory::default() };
        budget.devices.iter_mut().zip(devices).for_each(|(budget, device)| *budget = *device);
        Self {
            budget,
            devices: devices.len().clamp(1, MAX_DEVICES),
            used: Memory::default(),
            models: HashMap::new(),
            leases: HashMap::new(),
            queue: VecDeque::new(),
            active: None,
            uses: 0,
            last_lease: 0,
        }
    }

    /// Somebody wants the model, which takes about `estimate` unless it was measured before. The answer is among the steps
    /// of this or of a later call.
    pub(crate) fn ask(
        &mut self,
        key: &K,
        estimate: Footprint,
        holder: Holder,
        now: Instant,
    ) -> (LeaseId, Vec<Step<K>>) {
        self.last_lease += 1;
        let id = LeaseId(self.last_lease);
        let used = self.next_use();
        self.forget_the_oldest();
        let model = self.models.entry(key.clone()).or_insert_with(|| Model::on_disk(estimate, used));
        model.used = used;
        let is_granted = model.state == State::Resident;
        self.leases.insert(id, Lease { model: key.clone(), holder, is_granted });
        if is_granted {
            return (id, vec![Step::Grant(id)]);
        }
        if !self.is_coming(key) {
            self.model(key).estimate = estimate;
            self.doubt(key, id, now);
            self.model(key).was_out_of_memory = false;
            self.model(key).was_too_large = false;
            self.queue.push_back(key.clone());
        }
        (id, self.advance())
    }

    /// A lease ends, or somebody waits no longer. Another call of the same lease does nothing.
    pub(crate) fn release(&mut self, id: LeaseId) -> Vec<Step<K>> {
        let Some(lease) = self.leases.remove(&id) else { return Vec::new() };
        let used = self.next_use();
        if let Some(model) = self.models.get_mut(&lease.model)
            && lease.is_granted
        {
            model.used = used;
        }
        if !self.is_wanted(&lease.model) {
            self.queue.retain(|key| *key != lease.model);
            self.active = self
                .active
                .take()
                .filter(|active| !matches!(active, Active::MakingRoom(key) if *key == lease.model));
        }
        self.advance()
    }

    /// The load is done, and this is what the model was measured to take.
    pub(crate) fn loaded(&mut self, key: &K, measured: Footprint, now: Instant) -> Vec<Step<K>> {
        let model = self.model(key);
        (model.footprint, model.measured) = (measured, Some(now));
        self.active = Some(Active::Settling(key.clone()));
        self.advance()
    }

    /// The load gave no model; nothing of it is in memory.
    pub(crate) fn failed(&mut self, key: &K, failure: LoadFailure) -> Vec<Step<K>> {
        self.active = None;
        self.set(key, State::Disk, Memory::default());
        let is_first = !std::mem::replace(&mut self.model(key).was_out_of_memory, true);
        let is_retried = failure == LoadFailure::OutOfMemory && is_first && self.is_wanted(key);
        let mut steps = if is_retried { self.evict_idle() } else { Vec::new() };
        // What was on its way out before makes room too.
        if is_retried && self.is_evicting() {
            self.queue.push_front(key.clone());
        } else {
            self.model(key).was_out_of_memory = false;
            steps.extend(self.dismiss(key).map(Step::Fail));
        }
        steps.extend(self.advance());
        steps
    }

    /// The model is out of memory, and this is where it was left: on disk, or where it was meant to be.
    pub(crate) fn evicted(&mut self, key: &K, left: Tier) -> Vec<Step<K>> {
        match left {
            Tier::Warm => {
                let host = self.model(key).footprint.warm;
                self.set(key, State::Warm, Bytes { host, device: 0 }.on(0));
            }
            Tier::Disk => self.set(key, State::Disk, Memory::default()),
        }
        self.advance()
    }

    /// Takes the model out of memory, unless somebody has or wants it. Of one on disk, what was measured is forgotten.
    ///
    /// # Errors
    /// Those who do; none of them has a name when the model is being loaded and nobody waits any longer.
    pub(crate) fn unload(&mut self, key: &K) -> Result<Vec<Step<K>>, Vec<Holder>> {
        let mut holders: Vec<Holder> = self
            .leases
            .values()
            .filter(|lease| lease.model == *key)
            .map(|lease| lease.holder.clone())
            .collect();
        holders.sort();
        if !holders.is_empty() || self.is_active(key) {
            return Err(holders);
        }
        match self.models.get(key).map(|model| model.state) {
            Some(State::Resident | State::Warm) => Ok(vec![self.begin_to_evict(key, Tier::Disk)]),
            Some(State::Disk) => {
                self.models.remove(key);
                Ok(Vec::new())
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Takes everything out of memory that nobody leases: it was measured wrong, or others need the memory.
    pub(crate) fn evict_idle(&mut self) -> Vec<Step<K>> {
        let idle = self.idle();
        idle.iter().map(|key| self.begin_to_evict(key, Tier::Disk)).collect()
    }

    /// The models that are ready, the most recently used last.
    pub(crate) fn resident(&self) -> Vec<&K> {
        let mut resident: Vec<_> =
            self.models.iter().filter(|(_, model)| model.state == State::Resident).collect();
        resident.sort_by_key(|(_, model)| model.used);
        resident.into_iter().map(|(key, _)| key).collect()
    }

    /// Whether anything of the model is in memory, or comes or goes.
    pub(crate) fn is_in_memory(&self, key: &K) -> bool {
        self.models.get(key).is_some_and(|model| model.state != State::Disk)
    }

    /// The models of which anything is known, or that somebody waits for.
    pub(crate) fn known(&self) -> impl Iterator<Item = &K> {
        self.models.keys()
    }

    /// Whether the model waits to be loaded, or is being loaded.
    pub(crate) fn is_coming(&self, key: &K) -> bool {
        self.queue.contains(key) || self.is_active(key)
    }

    /// Whether some model is on its way out.
    pub(crate) fn is_evicting(&self) -> bool {
        self.models.values().any(|model| matches!(model.state, State::Evicting(_)))
    }

    /// The model of a lease that was granted.
    pub(crate) fn leased_model(&self, id: LeaseId) -> Option<&K> {
        self.leases.get(&id).filter(|lease| lease.is_granted).map(|lease| &lease.model)
    }

    /// Leases that were granted and not released.
    pub(crate) fn leased(&self) -> usize {
        self.leases.values().filter(|lease| lease.is_granted).count()
    }

    /// Those who have each model that is leased, and those who wait for it.
    pub(crate) fn leases(&self) -> HashMap<&K, (Vec<Holder>, Vec<Holder>)> {
        let mut leases: HashMap<_, (Vec<_>, Vec<_>)> = HashMap::new();
        for lease in self.leases.values() {
            let (held_by, waiting) = leases.entry(&lease.model).or_default();
            let whose = if lease.is_granted { held_by } else { waiting };
            whose.push(lease.holder.clone());
        }
        for (held_by, waiting) in leases.values_mut() {
            held_by.sort();
            waiting.sort();
        }
        leases
    }

    pub(crate) fn used(&self) -> Memory {
        self.used
    }

    pub(crate) fn budget(&self) -> Memory {
        self.budget
    }

    /// How many devices there are, at least 1.
    pub(crate) fn devices(&self) -> usize {
        self.devices
    }

    /// What this model has of the budget.
    pub(crate) fn charged(&self, key: &K) -> Memory {
        self.models.get(key).map(|model| model.charged).unwrap_or_default()
    }

    /// Where the model is, is being loaded, or was last.
    pub(crate) fn device(&self, key: &K) -> usize {
        self.models.get(key).map_or(0, |model| model.device)
    }

    fn advance(&mut self) -> Vec<Step<K>> {
        let mut steps = Vec::new();
        loop {
            match self.active.take() {
                None => match self.choose(&mut steps) {
                    Some(key) => self.active = Some(Active::MakingRoom(key)),
                    None => return steps,
                },
                // What goes has to be gone: it is in memory until then, whatever the budget says.
                Some(Active::MakingRoom(key)) if self.is_evicting() => {
                    self.active = Some(Active::MakingRoom(key));
                    return steps;
                }
                Some(Active::MakingRoom(key)) => self.begin_to_load(key, &mut steps),
                Some(Active::Loading(key)) => {
                    self.active = Some(Active::Loading(key));
                    return steps;
                }
                Some(Active::Settling(key)) => {
                    if !self.settle(key, &mut steps) {
                        return steps;
                    }
                }
            }
        }
    }

    /// The next to load: the first in the queue for which there is room or can be made. Those who wait for what can never be
    /// are refused.
    fn choose(&mut self, steps: &mut Vec<Step<K>>) -> Option<K> {
        for key in self.queue.clone() {
            self.refuse_the_hopeless(&key, steps);
            if self.is_wanted(&key) && self.plan(&key).is_some() {
                self.queue.retain(|queued| *queued != key);
                return Some(key);
            }
        }
        None
    }

    fn begin_to_load(&mut self, key: K, steps: &mut Vec<Step<K>>) {
        // Between the choice and now, what was to go may have been leased.
        let Some((device, victims)) = self.plan(&key) else {
            return self.queue.push_front(key);
        };
        if victims.is_empty() {
            self.model(&key).device = device;
            let reserved = self.models[&key].footprint.resident.on(device);
            self.set(&key, State::Loading, reserved);
            steps.push(Step::Load(key.clone()));
            self.active = Some(Active::Loading(key));
        } else {
            steps.extend(victims.iter().map(|(victim, tier)| self.begin_to_evict(victim, *tier)));
            self.active = Some(Active::MakingRoom(key));
        }
    }

    /// Charges what was measured. Returns whether the load is over.
    fn settle(&mut self, key: K, steps: &mut Vec<Step<K>>) -> bool {
        match self.plan_on(&key, self.models[&key].device) {
            Some(victims) if victims.is_empty() && !self.is_evicting() => {
                let model = &self.models[&key];
                let measured = model.footprint.resident.on(model.device);
                self.set(&key, State::Resident, measured);
                self.model(&key).was_out_of_memory = false;
                self.model(&key).was_too_large = false;
                self.model(&key).used = self.next_use();
                steps.extend(self.grant(&key));
                true
            }
            Some(victims) => {
                steps.extend(victims.iter().map(|(victim, tier)| self.begin_to_evict(victim, *tier)));
                self.active = Some(Active::Settling(key));
                false
            }
            // It is larger than it was taken for, and what it would need is leased: it waits like any other. If that can never
            // be, others may have taken what was measured: nobody is refused before a second load says the same.
            None => {
                if self.is_hopeless(&key) && !std::mem::replace(&mut self.model(&key).was_too_large, true) {
                    self.forget_the_measure(&key);
                }
                steps.push(self.begin_to_evict(&key, Tier::Disk));
                if self.is_wanted(&key) {
                    self.queue.push_front(key);
                }
                true
            }
        }
    }

    fn begin_to_evict(&mut self, key: &K, tier: Tier) -> Step<K> {
        self.model(key).state = State::Evicting(tier);
        Step::Evict(key.clone(), tier)
    }

    fn grant(&mut self, key: &K) -> Vec<Step<K>> {
        let mut granted: Vec<_> = self.waiting(key).collect();
        granted.sort();
        for id in &granted {
            self.leases.get_mut(id).expect("it waits").is_granted = true;
        }
        granted.into_iter().map(Step::Grant).collect()
    }

    /// Those who wait for the model, who do so no longer.
    fn dismiss(&mut self, key: &K) -> impl Iterator<Item = LeaseId> + use<K> {
        let mut waiting: Vec<_> = self.waiting(key).collect();
        waiting.sort();
        for id in &waiting {
            self.leases.remove(id);
        }
        waiting.into_iter()
    }

    fn waiting(&self, key: &K) -> impl Iterator<Item = LeaseId> {
        let waits = |lease: &Lease<K>| lease.model == *key && !lease.is_granted;
        self.leases.iter().filter(move |(_, lease)| waits(lease)).map(|(id, _)| *id)
    }

    fn is_wanted(&self, key: &K) -> bool {
        self.leases.values().any(|lease| lease.model == *key)
    }

    fn is_active(&self, key: &K) -> bool {
        match &self.active {
            Some(Active::MakingRoom(active) | Active::Loading(active) | Active::Settling(active)) => {
                active == key
            }
            None => false,
        }
    }

    fn set(&mut self, key: &K, state: State, charged: Memory) {
        let model = self.models.get_mut(key).expect("only models that were asked for change");
        self.used = self.used.minus(model.charged).plus(charged);
        model.charged = charged;
        model.state = state;
    }

    fn model(&mut self, key: &K) -> &mut Model {
        self.models.get_mut(key).expect("only models that were asked for change")
    }

    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn forget_the_oldest(&mut self) {
        while self.models.len() >= REMEMBERED {
            let on_disk =
                self.models.iter().filter(|(key, model)| model.state == State::Disk && !self.is_wanted(key));
            let Some(oldest) = on_disk.min_by_key(|(_, model)| model.used).map(|(key, _)| key.clone()) else {
                return;
            };
            self.models.remove(&oldest);
        }
    }
}

impl Model {
    fn on_disk(footprint: Footprint, used: u64) -> Self {
        Self {
            state: State::Disk,
            device: 0,
            footprint,
            estimate: footprint,
            measured: None,
            charged: Memory::default(),
            used,
            was_out_of_memory: false,
            was_too_large: false,
        }
    }
}

#[cfg(test)]
mod tests;
