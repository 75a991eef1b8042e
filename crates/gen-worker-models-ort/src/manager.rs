//! Carries out what residency decides: loads, evictions, leases, and who hears of them.

mod desk;
#[cfg(test)]
mod tests;
mod work;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use gen_worker_core::{
    JobFailure, LocalModel, ModelRef,
    ports::{
        EventSink, LeaseHolder, LeasedModel, ModelDevice, ModelLease, ModelManager, ModelMemory, ModelStats,
    },
};
use tokio::{sync::Notify, time::timeout};
use tracing::info;

use self::desk::{Answer, Desk, Key};
use crate::{
    budget::Bytes,
    config::{OrtConfig, Provider},
    device::{Gauge, Machine},
    error::ModelError,
    library,
    model::{Lease, OrtModel},
    residency::{LeaseId, Step},
    session::{Recipe, first_that_works},
};

/// The models in memory, within a budget. A model stays until others need its place, and always while it is leased.
///
/// ```no_run
/// # async fn doc(local: &gen_worker_core::LocalModel) -> Result<(), gen_worker_models_ort::ModelError> {
/// use gen_worker_core::{config::{ConfigErrors, Env}, ports::LeaseHolder};
/// use gen_worker_models_ort::{OrtConfig, OrtModels};
///
/// let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
/// let models = OrtModels::new(config)?;
/// println!("{:?}", models.model(local, &LeaseHolder::default()).await?.inputs());
/// # Ok(())
/// # }
/// ```
pub struct OrtModels(Arc<Office>);

struct Office {
    recipe: Recipe,
    version: Option<String>,
    wait: Duration,
    gauge: Box<dyn Gauge>,
    desk: Mutex<Desk>,
    /// A model has come into memory, or left it.
    moved: Notify,
    events: OnceLock<Arc<dyn EventSink>>,
}

/// What keeps a model in memory, or the place of somebody who waits for it.
pub(crate) struct Pin {
    office: Arc<Office>,
    id: LeaseId,
}

impl OrtModels {
    /// Loads the library, unless this process has loaded one, and looks for a provider on which a session runs.
    ///
    /// # Errors
    /// The library is missing or cannot be used, or none of the providers works here.
    pub fn new(config: OrtConfig) -> Result<Self, ModelError> {
        let engine = library::load(config.dylib.as_deref())?;
        let provider = first_that_works(&engine, &config.providers)?;
        let machine = Machine::of(provider, &config);
        let budget = machine.budget(&config);
        let recipe = Recipe::new(&engine, &config, provider, budget.devices.clone());
        let (version, devices) = (engine.version, budget.devices.len());
        let device = budget.devices.iter().copied().fold(0, u64::saturating_add);
        let shown = Bytes { host: budget.host, device };
        info!(version, %provider, threads = config.threads(), devices, budget = %shown, "ONNX Runtime ready");
        Ok(Self(Arc::new(Office {
            recipe,
            version,
            wait: config.wait,
            gauge: Box::new(machine),
            desk: Mutex::new(Desk::new(&budget)),
            moved: Notify::new(),
            events: OnceLock::new(),
        })))
    }

    /// What models really run on: the first of the settings' providers that worked. A model of which no session has it is not
    /// loaded.
    pub fn provider(&self) -> Provider {
        self.0.recipe.provider()
    }

    /// The model, loaded first if need be. Callers that ask for the same model share one load; a load that failed is
    /// tried again by the next caller.
    ///
    /// # Errors
    /// The files hold no model that can be run, or it does not fit.
    ///
    /// # Cancel safety
    /// A load that has begun goes on when the future is dropped.
    pub async fn model(&self, local: &LocalModel, holder: &LeaseHolder) -> Result<OrtModel, ModelError> {
        let (pin, answer) = self.0.ask(local, holder);
        let loaded = match answer {
            Answer::Now(loaded) => loaded,
            Answer::Later(answer) => match timeout(self.0.wait, answer).await {
                Ok(answer) => answer.map_err(|_| ModelError::Panicked)??,
                Err(_) => return Err(self.0.waited(&local.model)),
            },
        };
        Ok(OrtModel::new(Lease { loaded, cancellation: holder.cancellation.clone(), pin }))
    }
}

#[async_trait]
impl ModelManager for OrtModels {
    fn report_to(&self, events: Arc<dyn EventSink>) {
        self.0.events.get_or_init(|| events);
    }

    async fn load(&self, local: &LocalModel) -> Result<(), JobFailure> {
        Ok(self.model(local, &LeaseHolder::default()).await.map(drop)?)
    }

    async fn lease(&self, local: &LocalModel, holder: &LeaseHolder) -> Result<ModelLease, JobFailure> {
        Ok(Arc::new(self.model(local, holder).await?))
    }

    async fn unload(&self, model: &ModelRef) -> Result<(), JobFailure> {
        let gone = timeout(self.0.wait, self.0.take_out(model)).await;
        Ok(gone.unwrap_or_else(|_| Err(self.0.waited(model)))?)
    }

    fn resident(&self) -> Vec<String> {
        self.0.desk().resident()
    }

    fn stats(&self) -> ModelStats {
        let provider = self.0.recipe.provider();
        self.0.desk().stats(provider)
    }

    fn memory(&self) -> Vec<ModelMemory> {
        let provider = self.0.recipe.provider();
        self.0.desk().memory(provider)
    }

    fn leases(&self) -> Vec<LeasedModel> {
        let provider = self.0.recipe.provider();
        self.0.desk().leases(provider)
    }

    fn device(&self) -> ModelDevice {
        if self.0.recipe.provider().is_nvidia() { ModelDevice::Gpu } else { ModelDevice::Processor }
    }

    fn engine_version(&self) -> Option<String> {
        self.0.version.clone()
    }
}

impl Office {
    fn ask(self: &Arc<Self>, local: &LocalModel, holder: &LeaseHolder) -> (Pin, Answer) {
        let holder = holder.run_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let provider = self.recipe.provider();
        let mut asked = None;
        self.turn(|desk| {
            let (id, answer, steps) = desk.ask(local, holder, provider);
            asked = Some((id, answer));
            steps
        });
        let (id, answer) = asked.expect("it was asked");
        (Pin { office: self.clone(), id }, answer)
    }

    /// One decision and what follows from it. The work is begun when the desk is free again.
    fn turn(self: &Arc<Self>, decide: impl FnOnce(&mut Desk) -> Vec<Step<Key>>) {
        self.turn_after(None, decide);
    }

    /// The same after a load that failed.
    fn turn_after(
        self: &Arc<Self>,
        failed: Option<&ModelError>,
        decide: impl FnOnce(&mut Desk) -> Vec<Step<Key>>,
    ) {
        let mut desk = self.desk();
        let steps = decide(&mut desk);
        let work = desk.carry_out(steps, failed);
        drop(desk);
        work.into_iter().for_each(|work| work.begin(self));
    }

    async fn take_out(self: &Arc<Self>, model: &ModelRef) -> Result<(), ModelError> {
        loop {
            let moved = self.moved.notified();
            let mut users = Vec::new();
            self.turn(|desk| {
                let steps;
                (steps, users) = desk.unload(model);
                steps
            });
            if !users.is_empty() {
                users.retain(|user| !user.is_empty());
                let users = if users.is_empty() { "a load".to_owned() } else { users.join(", ") };
                return Err(ModelError::InUse { model: model.to_string(), users });
            }
            if !self.desk().is_in_memory(model) {
                return Ok(());
            }
            moved.await;
        }
    }

    fn waited(&self, model: &ModelRef) -> ModelError {
        ModelError::Waited { model: model.to_string(), waited: self.wait }
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pin {
    /// Takes out of memory what nobody leases, and says whether there was anything, or anything was on its way out. Waits until it
    /// is gone, and needs no runtime.
    pub(crate) async fn make_room(&self) -> bool {
        let mut is_any = false;
        self.office.turn(|desk| {
            let steps = desk.evict_idle();
            is_any = desk.is_evicting();
            steps
        });
        loop {
            let moved = self.office.moved.notified();
            if !self.office.desk().is_evicting() {
                return is_any;
            }
            moved.await;
        }
    }

    /// The longest wait for others to go.
    pub(crate) fn wait(&self) -> Duration {
        self.office.wait
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.office.turn(|desk| desk.release(self.id));
    }
}

impl fmt::Debug for OrtModels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OrtModels").field(&self.0.desk().resident()).finish()
    }
}
