//! What the manager holds under its lock: residency, the models themselves, and those who wait for one.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use gen_worker_core::{
    LocalModel, ModelRef,
    ports::{LeasedModel, ModelStats},
};
use tokio::sync::oneshot;

use super::work::Work;
use crate::{
    budget::{Bytes, Footprint},
    config::Provider,
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
    evictions: u64,
}

impl Key {
    fn of(local: &LocalModel) -> Self {
        Self { model: local.model.clone(), root: local.root.clone() }
    }
}

impl Desk {
    pub(super) fn new(budget: Bytes) -> Self {
        Self {
            residency: Residency::new(budget),
            loaded: HashMap::new(),
            coming: HashMap::new(),
            waiting: HashMap::new(),
            kept: HashMap::new(),
            loads: 0,
            hits: 0,
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
        let (id, mut steps) = self.residency.ask(&key, estimate(local, provider), holder);
        if let Some(loaded) = self.loaded.get(&key).filter(|_| steps == [Step::Grant(id)]) {
            self.hits += 1;
            return (id, Answer::Now(loaded.clone()), Vec::new());
        }
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
        let steps = self.residency.release(id);
        self.tidy();
        steps
    }

    pub(super) fn loaded(&mut self, key: &Key, loaded: Loaded, measured: Footprint) -> Vec<Step<Key>> {
        self.loaded.insert(key.clone(), Arc::new(loaded));
        self.residency.loaded(key, measured)
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
                    work.push(Work::Load { key, local, kept: kept.unwrap_or_default() });
                }
                Step::Evict(key, tier) => {
                    self.evictions += 1;
                    let bytes = self.residency.charged(&key);
                    let (loaded, kept) = (self.loaded.remove(&key), self.kept.remove(&key));
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
            Refusal::TooLarge { needed, budget } => {
                ModelError::TooLarge { model, needed: needed.to_string(), budget: budget.to_string() }
            }
            Refusal::BesideOwn { needed, held, budget } => ModelError::BesideOwn {
                model,
                needed: needed.to_string(),
                held: held.to_string(),
                budget: budget.to_string(),
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
            bytes: of(provider, self.residency.charged(key)),
            held_by,
            waiting,
        };
        let mut leases: Vec<_> = self.residency.leases().into_iter().map(listed).collect();
        leases.sort_by(|one, other| one.model.cmp(&other.model));
        leases
    }

    pub(super) fn stats(&self, provider: Provider) -> ModelStats {
        let bytes = |bytes| of(provider, bytes);
        ModelStats {
            resident: self.loaded.len() as u64,
            leased: self.residency.leased() as u64,
            loads: self.loads,
            hits: self.hits,
            evictions: self.evictions,
            used_bytes: bytes(self.residency.used()),
            budget_bytes: bytes(self.residency.budget()),
        }
    }
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
