//! The models in memory: each loaded once, shared by all who ask for it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use gen_worker_core::{
    JobFailure, LocalModel, ModelRef,
    ports::{ModelLease, ModelProvider},
};
use tokio::sync::OnceCell;
use tracing::info;

use crate::{config::OrtConfig, error::ModelError, library, model::OrtModel, session::Recipe};

/// The models in memory. A model stays until it is unloaded.
///
/// ```no_run
/// # async fn doc(local: &gen_worker_core::LocalModel) -> Result<(), gen_worker_models_ort::ModelError> {
/// use gen_worker_core::config::{ConfigErrors, Env};
/// use gen_worker_models_ort::{OrtConfig, OrtModels};
///
/// let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
/// let models = OrtModels::new(config)?;
/// println!("{:?}", models.load(local).await?.inputs());
/// # Ok(())
/// # }
/// ```
pub struct OrtModels {
    recipe: Recipe,
    version: Option<String>,
    slots: Mutex<Slots>,
}

/// A slot is empty while its model is being loaded.
type Slots = HashMap<ModelRef, Arc<OnceCell<OrtModel>>>;

impl OrtModels {
    /// Loads the library, unless this process has loaded one, and looks for a provider that works.
    ///
    /// # Errors
    /// The library is missing or cannot be used, or none of the providers works here.
    pub fn new(config: OrtConfig) -> Result<Self, ModelError> {
        let engine = library::load(config.dylib.as_deref())?;
        let threads = config.threads();
        let recipe = Recipe::new(engine.environment, &config.providers, threads)?;
        let version = engine.version;
        info!(version, provider = %recipe.provider(), threads, "ONNX Runtime ready");
        Ok(Self { recipe, version, slots: Mutex::default() })
    }

    /// The model, loaded first if need be. Callers that ask for the same model share one load; a load that failed is
    /// tried again by the next caller.
    ///
    /// # Errors
    /// The files hold no model that can be run, or memory ran out.
    ///
    /// # Cancel safety
    /// When the caller that loads goes away, the next that waits loads in its place.
    pub async fn load(&self, local: &LocalModel) -> Result<OrtModel, ModelError> {
        let slot = self.slot(local);
        let model = slot.get_or_try_init(|| self.open(local)).await?;
        Ok(model.clone())
    }

    async fn open(&self, local: &LocalModel) -> Result<OrtModel, ModelError> {
        let started = Instant::now();
        let model = OrtModel::open(&self.recipe, local).await?;
        let elapsed_ms = started.elapsed().as_millis();
        info!(model = %local.model, bytes = local.size_bytes, elapsed_ms, "model resident");
        Ok(model)
    }

    /// The slot of a model. A model that was loaded from other files makes place: its tag has moved.
    fn slot(&self, local: &LocalModel) -> Arc<OnceCell<OrtModel>> {
        let mut slots = self.slots();
        // What is empty and held by nobody else is a load that failed or was given up.
        slots.retain(|_, slot| match slot.get() {
            Some(model) => model.is_alive(),
            None => Arc::strong_count(slot) > 1,
        });
        let moved =
            |slot: &Arc<OnceCell<OrtModel>>| slot.get().is_some_and(|model| model.local().root != local.root);
        if slots.get(&local.model).is_some_and(moved) {
            slots.remove(&local.model);
        }
        slots.entry(local.model.clone()).or_default().clone()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ModelProvider for OrtModels {
    async fn lease(&self, local: &LocalModel) -> Result<ModelLease, JobFailure> {
        Ok(Arc::new(self.load(local).await?))
    }

    async fn unload(&self, model: &ModelRef) -> Result<(), JobFailure> {
        if self.slots().remove(model).is_some() {
            info!(%model, "model unloaded");
        }
        Ok(())
    }

    fn resident(&self) -> Vec<String> {
        let slots = self.slots();
        let models = slots.values().filter_map(|slot| slot.get());
        models.map(|model| model.model_id().to_owned()).collect()
    }

    fn engine_version(&self) -> Option<String> {
        self.version.clone()
    }
}
