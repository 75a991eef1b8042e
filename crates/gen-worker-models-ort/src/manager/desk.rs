//! What the manager holds under its lock: residency, the models themselves, and those who wait for one.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use gen_worker_core::{
    LocalModel, ModelRef,
    ports::{LeasedModel, ModelMemory, ModelStats},
};
use tokio::sync::oneshot;

use super::work::Work;
use crate::{
    budget::{Bytes, Footprint},
    config::{self, Provider},
    device::Budget,
    error::ModelError,
    model::{KeptGraphs, Loaded},
    residency::{Holder, LeaseId, LoadFailure, Refusal, Residency, Step, Tier},
};

/// A model, by its reference and the files that this led to: when a tag moves, the model is another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) model: ModelRef,
    root: PathBuf,
}

/// The answer to somebody who asks for a model.
pub(super) enum Answer {
    Now(Arc<Loaded>),
    Later(oneshot::Receiver<Result<Arc<Loaded>, ModelError>>),
}

pub(super) struct Desk {
    residency: Residency<Key>,
    loaded: HashMap<Key, Arc<Loaded>>,
    /// The files of what is to be loaded.
    coming: HashMap<Key, LocalModel>,
    waiting: HashMap<LeaseId, oneshot::Sender<Result<Arc<Loaded>, ModelError>>>,
    /// What is left of models that were evicted and are warm.
    kept: HashMap<Key, KeptGraphs>,
    loads: u64,
    hits: u64,
    misses: u64,
    evictions: u64,
}

impl Key {
    fn of(local: &LocalModel) -> Self {
        Self { model: local.model.clone(), root: local.root.clone() }
    }
}

impl Desk {
    pub(super) fn new(budget: &Budget) -> Self {
        Self {
            residency: Residency::new(budget.host, &budget.devices),
            loaded: HashMap::new(),
            coming: HashMap::new(),
            waiting: HashMap::new(),
            kept: HashMap::new(),
            loads: 0,
            hits: 0,
            misses: 0,
            evictions: 0,
        }
    }

    pub(super) fn ask(
        &mut self,
        local: &LocalModel,
        holder: Holder,
        provider: Provider,
    ) -> (LeaseId, Answer, Vec<Step<Key>>) {
        let key = Key::of(local);
        let (id, mut steps) = self.residency.ask(&key, estimate(local, provider), holder, Instant::now());
        if let Some(loaded) = self.loaded.get(&key).filter(|_| steps == [Step::Grant(id)]) {
            self.hits += 1;
            return (id, Answer::Now(loaded.clone()), Vec::new());
        }
        self.misses += 1;
        let (tell, told) = oneshot::channel();
        self.waiting.insert(id, tell);
        steps.extend(self.retire_others(&key));
        self.coming.insert(key, local.clone());
        (id, Answer::Later(told), steps)
    }

    /// The models that the reference led to before; one that is leased goes like any other when it was not used for long.
    fn retire_others(&mut self, key: &Key) -> Vec<Step<Key>> {
        let others = self.loaded.keys().filter(|other| other.model == key.model && *other != key);
        let others: Vec<_> = others.cloned().collect();
        others.iter().flat_map(|other| self.residency.unload(other).unwrap_or_default()).collect()
    }

    pub(super) fn release(&mut self, id: LeaseId) -> Vec<Step<Key>> {
        self.waiting.remove(&id);
        self.residency.release(id)
    }

    pub(super) fn loaded(&mut self, key: &Key, loaded: Loaded, measured: Footprint) -> Vec<Step<Key>> {
        self.loaded.insert(key.clone(), Arc::new(loaded));
        self.residency.loaded(key, measured, Instant::now())
    }

    pub(super) fn failed(&mut self, key: &Key, error: &ModelError) -> Vec<Step<Key>> {
        let failure = match error {
            ModelError::OutOfMemory { .. } => LoadFailure::OutOfMemory,
            _ => LoadFailure::Other,
        };
        self.residency.failed(key, failure)
    }

    /// `kept` is what is left of it; `None`: nothing.
    pub(super) fn evicted(&mut self, key: &Key, kept: Option<KeptGraphs>) -> Vec<Step<Key>> {
        let left = if kept.is_some() { Tier::Warm } else { Tier::Disk };
        self.kept.extend(kept.map(|kept| (key.clone(), kept)));
        self.residency.evicted(key, left)
    }

    pub(super) fn evict_idle(&mut self) -> Vec<Step<Key>> {
        self.residency.evict_idle()
    }

    /// Takes a model out of memory, and says who has it or waits for it if anybody does.
    pub(super) fn unload(&mut self, model: &ModelRef) -> (Vec<Step<Key>>, Vec<Holder>) {
        let keys: Vec<Key> = self.residency.known().filter(|key| key.model == *model).cloned().collect();
        let (mut steps, mut users) = (Vec::new(), Vec::new());
        for key in &keys {
            match self.residency.unload(key) {
                Ok(more) => steps.extend(more),
                Err(holders) => users.extend(holders),
            }
        }
        (steps, users)
    }

    /// Gives answers, and returns what is to be done outside. `error` is that of the load that failed.
    pub(super) fn carry_out(&mut self, steps: Vec<Step<Key>>, error: Option<&ModelError>) -> Vec<Work> {
        let mut work = Vec::new();
        for step in steps {
            match step {
                Step::Load(key) => {
                    self.loads += 1;
                    let (local, kept) = (self.coming[&key].clone(), self.kept.remove(&key));
                    let device = self.residency.device(&key);
                    work.push(Work::Load { key, local, device, kept: kept.unwrap_or_default() });
                }
                Step::Evict(key, tier) => {
                    let bytes = self.residency.charged(&key).total();
                    let (loaded, kept) = (self.loaded.remove(&key), self.kept.remove(&key));
                    // What was warm had been taken out before.
                    self.evictions += u64::from(loaded.is_some());
                    work.push(Work::Evict { key, loaded, kept, tier, bytes });
                }
                Step::Grant(id) => self.grant(id),
                Step::Refuse(id, key, refusal) => self.refuse(id, &key, refusal),
                Step::Fail(id) => self.answer(id, Err(error.cloned().unwrap_or(ModelError::Panicked))),
            }
        }
        self.tidy();
        work
    }

    /// Lets go of the files of what is to be loaded no longer.
    fn tidy(&mut self) {
        let residency = &self.residency;
        self.coming.retain(|key, _| residency.is_coming(key));
    }

    fn grant(&mut self, id: LeaseId) {
        let Some(loaded) = self.residency.leased_model(id).and_then(|key| self.loaded.get(key)) else {
            return;
        };
        let loaded = loaded.clone();
        self.answer(id, Ok(loaded));
    }

    fn refuse(&mut self, id: LeaseId, model: &Key, refusal: Refusal) {
        let model = model.model.to_string();
        let error = match refusal {
            Refusal::TooLarge { needed, budget } => ModelError::TooLarge {
                model,
                needed: needed.to_string(),
                budget: budget.to_string(),
                setting: setting(needed, budget),
            },
            Refusal::BesideOwn { needed, held, budget } => ModelError::BesideOwn {
                model,
                needed: needed.to_string(),
                held: held.to_string(),
                budget: budget.to_string(),
                setting: setting(needed.plus(held), budget),
            },
        };
        self.answer(id, Err(error));
    }

    /// Nobody hears it who does not wait any longer.
    fn answer(&mut self, id: LeaseId, answer: Result<Arc<Loaded>, ModelError>) {
        if let Some(tell) = self.waiting.remove(&id) {
            let _ = tell.send(answer);
        }
    }

    pub(super) fn is_in_memory(&self, model: &ModelRef) -> bool {
        self.residency.known().any(|key| key.model == *model && self.residency.is_in_memory(key))
    }

    /// Has all sessions let go of memory that their calls do not use.
    pub(super) fn shrink(&self) {
        self.loaded.values().for_each(|loaded| loaded.shrink());
    }

    pub(super) fn is_evicting(&self) -> bool {
        self.residency.is_evicting()
    }

    /// The references of the models that are ready, each once, the most recently used last.
    pub(super) fn resident(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        let keys = self.residency.resident().into_iter();
        keys.filter(|key| seen.insert(&key.model)).map(|key| key.model.known_as().to_owned()).collect()
    }

    /// The models that are leased or waited for.
    pub(super) fn leases(&self, provider: Provider) -> Vec<LeasedModel> {
        let listed = |(key, (held_by, waiting)): (&Key, (Vec<Holder>, Vec<Holder>))| LeasedModel {
            model: key.model.known_as().to_owned(),
            bytes: of(provider, self.residency.charged(key).total()),
            held_by,
            waiting,
        };
        let mut leases: Vec<_> = self.residency.leases().into_iter().map(listed).collect();
        leases.sort_by(|one, other| one.model.cmp(&other.model));
        leases
    }

    /// The memory that models run in, device by device.
    pub(super) fn memory(&self, provider: Provider) -> Vec<ModelMemory> {
        let (used, budget) = (self.residency.used(), self.residency.budget());
        let on = |device| ModelMemory {
            used_bytes: of(provider, used.of(device)),
            budget_bytes: limited(of(provider, budget.of(device))),
        };
        // Main memory is one, whatever the devices.
        let devices = if provider.is_nvidia() { self.residency.devices() } else { 1 };
        (0..devices).map(on).collect()
    }

    pub(super) fn stats(&self, provider: Provider) -> ModelStats {
        let bytes = |bytes| of(provider, bytes);
        ModelStats {
            resident: self.loaded.len() as u64,
            leased: self.residency.leased() as u64,
            loads: self.loads,
            hits: self.hits,
            misses: self.misses,
            evictions: self.evictions,
            used_bytes: bytes(self.residency.used().total()),
            budget_bytes: limited(bytes(self.residency.budget().total())),
        }
    }
}

/// A budget as it is told: 0 is none.
fn limited(bytes: u64) -> u64 {
    if bytes == u64::MAX { 0 } else { bytes }
}

/// The setting that gives models more of what is short.
fn setting(needed: Bytes, budget: Bytes) -> &'static str {
    if needed.device > budget.device { config::MAX_VRAM.name } else { config::MAX_RAM.name }
}

/// What a model takes as far as its files tell.
fn estimate(local: &LocalModel, provider: Provider) -> Footprint {
    Footprint { resident: on(provider, local.size_bytes), warm: 0 }
}

/// Of these bytes those of the memory that models run in.
fn of(provider: Provider, bytes: Bytes) -> u64 {
    if provider.is_nvidia() { bytes.device } else { bytes.host }
}

/// Bytes of the memory that models run in.
pub(super) fn on(provider: Provider, bytes: u64) -> Bytes {
    if provider.is_nvidia() { Bytes { host: 0, device: bytes } } else { Bytes { host: bytes, device: 0 } }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_memory_of_each_card_is_told_apart() {
        let mut desk = Desk::new(&Budget { host: 100, devices: vec![80, u64::MAX] });
        let local = |name: &str, size_bytes| LocalModel {
            model: ModelRef::parse(name).unwrap(),
            root: "/m".into(),
            files: BTreeMap::new(),
            size_bytes,
            pin: None,
        };
        let small = desk.ask(&local("acme/small", 24), Holder::new(), Provider::Cuda).2;
        assert!(matches!(small[..], [Step::Load(_)]), "its memory is charged when its load begins");
        let told = |used_bytes, budget_bytes| ModelMemory { used_bytes, budget_bytes };
        // It goes where there is most room.
        assert_eq!(desk.memory(Provider::Cuda), [told(0, 80), told(24, 0)]);
        assert_eq!(desk.stats(Provider::Cuda).used_bytes, 24);
        assert_eq!(desk.memory(Provider::Cpu), [told(0, 100)], "main memory is one");
    }
}
