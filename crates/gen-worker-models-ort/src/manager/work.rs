//! Loads and evictions, each on a thread of its own for as long as it takes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use gen_worker_core::{Event, LocalModel, ModelState};
use tracing::{info, warn};

use super::{
    Office,
    desk::{Key, on},
};
use crate::{
    budget::{Bytes, Footprint},
    error::ModelError,
    model::{KeptGraphs, Loaded},
    residency::Tier,
};

/// What is to be done outside the manager's lock.
pub(super) enum Work {
    Load { key: Key, local: LocalModel, device: usize, kept: KeptGraphs },
    Evict { key: Key, loaded: Option<Arc<Loaded>>, kept: Option<KeptGraphs>, tier: Tier, bytes: Bytes },
}

impl Work {
    pub(super) fn begin(self, office: &Arc<Office>) {
        match self {
            Self::Load { key, local, device, kept } => {
                office.report(&key, ModelState::Loading, 0, Duration::ZERO);
                let (own, loading) = (office.clone(), key.clone());
                if let Err(source) = spawn("ort-load", move || own.load(&loading, &local, device, kept)) {
                    office.load_failed(&key, &ModelError::Thread { source: source.into() });
                }
            }
            Self::Evict { key, loaded, kept, tier, bytes } => {
                office.report(&key, ModelState::Evicting, office.of(bytes), Duration::ZERO);
                let (own, leaving) = (office.clone(), key.clone());
                // Without a thread the sessions end here, where the work is dropped.
                let evict = move || {
                    drop(kept);
                    own.evict(&leaving, loaded, tier);
                };
                if spawn("ort-evict", evict).is_err() {
                    office.gone(&key, None, Duration::ZERO);
                }
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

impl Office {
    /// Whatever ends it, those who wait for the model hear of it.
    fn load(self: &Arc<Self>, key: &Key, local: &LocalModel, device: usize, kept: KeptGraphs) {
        let open = AssertUnwindSafe(|| self.open(local, device, kept));
        match catch_unwind(open).unwrap_or(Err(ModelError::Panicked)) {
            Ok((loaded, took, gained)) => self.load_done(key, loaded, took, gained),
            Err(error) => {
                warn!(model = %key.model, %error, "model not loaded");
                self.load_failed(key, &error);
            }
        }
    }

    /// The model, how long that took, and the bytes that were gained by it.
    fn open(
        &self,
        local: &LocalModel,
        device: usize,
        kept: KeptGraphs,
    ) -> Result<(Loaded, Duration, Bytes), ModelError> {
        let (started, before) = (Instant::now(), self.gauge.used());
        let warm = kept.values().map(|kept| kept.bytes).sum();
        let loaded = Loaded::open(&self.recipe, local, device, kept)?;
        let gained = self.gauge.used().minus(before).of(device);
        Ok((loaded, started.elapsed(), gained.plus(Bytes { host: warm, device: 0 })))
    }

    /// Charges what was measured, or the size of the files if that is more: memory that earlier models gave back to the
    /// process, and not to the system, is not seen growing.
    fn load_done(self: &Arc<Self>, key: &Key, loaded: Loaded, took: Duration, gained: Bytes) {
        let least = on(self.recipe.provider(), loaded.size_bytes());
        let gained = if self.recipe.provider().is_nvidia() { gained } else { Bytes { device: 0, ..gained } };
        let warm = loaded.kept_bytes();
        let resident = gained.at_least(least).at_least(Bytes { host: warm, device: 0 });
        let (bytes, elapsed_ms) = (self.of(resident), took.as_millis());
        let (provider, device) = (self.recipe.provider(), loaded.device());
        info!(model = %key.model, bytes, %provider, device, elapsed_ms, "model resident");
        self.report(key, ModelState::Resident, bytes, took);
        self.turn(|desk| desk.loaded(key, loaded, Footprint { resident, warm }));
        self.moved.notify_waiters();
    }

    fn load_failed(self: &Arc<Self>, key: &Key, error: &ModelError) {
        self.report(key, ModelState::Failed, 0, Duration::ZERO);
        self.turn_after(Some(error), |desk| desk.failed(key, error));
        self.moved.notify_waiters();
    }

    fn evict(self: &Arc<Self>, key: &Key, loaded: Option<Arc<Loaded>>, tier: Tier) {
        let started = Instant::now();
        let kept = match (&loaded, tier) {
            (Some(loaded), Tier::Warm) => Some(loaded.kept()),
            _ => None,
        };
        // Whoever leased it has let go of it before the lease ended.
        drop(loaded);
        self.gone(key, kept, started.elapsed());
    }

    fn gone(self: &Arc<Self>, key: &Key, kept: Option<KeptGraphs>, took: Duration) {
        let state = if kept.is_some() { ModelState::Warm } else { ModelState::OnDisk };
        info!(model = %key.model, state = state.as_str(), elapsed_ms = took.as_millis(), "model evicted");
        self.report(key, state, 0, took);
        self.turn(|desk| {
            desk.shrink();
            desk.evicted(key, kept)
        });
        self.moved.notify_waiters();
    }

    fn report(&self, key: &Key, state: ModelState, bytes: u64, took: Duration) {
        let Some(events) = self.events.get() else { return };
        let event = Event::model_state(key.model.known_as(), state, bytes, took);
        // Who listens is not ours: what goes wrong there costs the event, and not the model.
        if catch_unwind(AssertUnwindSafe(|| events.emit(event))).is_err() {
            warn!(model = %key.model, state = state.as_str(), "nobody was told");
        }
    }

    /// Of both kinds of memory, the one that models run in.
    fn of(&self, bytes: Bytes) -> u64 {
        if self.recipe.provider().is_nvidia() { bytes.device } else { bytes.host }
    }
}
