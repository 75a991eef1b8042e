//! The hub: models made present, each by one task that outlives those who wait for it.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use gen_worker_core::{
    AssetRef, JobFailure, LocalFile, LocalModel, ModelRef, RunScope,
    metric::Readings,
    ports::{EventSink, InputSource, Measured, ModelDownload, ModelSource},
};
use gen_worker_net::HttpClient;
use indicatif::MultiProgress;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    bring::Bringer,
    config::HubConfig,
    error::SharedError,
    flight::{Flights, follow},
    input,
    meters::{Landed, Meters},
    progress::Reporter,
    store::Store,
};

/// Makes models and input files present. Dropping it ends the downloads under way; they are resumed by the next.
pub struct Hub {
    shared: Arc<Shared>,
    /// A download goes on when those who wait for it have gone: its bytes will be wanted again.
    downloads: Mutex<JoinSet<()>>,
}

struct Shared {
    config: HubConfig,
    client: HttpClient,
    bringer: Bringer,
    flights: Flights,
    slots: Semaphore,
    /// As the scheduler knows them, with the keys of their places.
    on_disk: Mutex<BTreeMap<String, String>>,
    bars: Option<MultiProgress>,
    meters: Arc<Meters>,
}

impl Hub {
    /// A hub over the models that the cache directory holds. Reads that directory; connects to nothing.
    pub fn new(config: HubConfig, client: HttpClient) -> Self {
        let store = Store::new(&config.cache_dir, config.cache_limit.max());
        let shared = Shared {
            on_disk: Mutex::new(store.scan().into_iter().collect()),
            bringer: Bringer::new(config.clone(), client.clone(), store),
            flights: Flights::default(),
            slots: Semaphore::new(at_once(&config)),
            bars: config.show_bars.then(MultiProgress::new),
            meters: Arc::default(),
            config,
            client,
        };
        Self { shared: Arc::new(shared), downloads: Mutex::default() }
    }

    fn spawn(&self, download: impl Future<Output = ()> + Send + 'static) {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        while downloads.try_join_next().is_some() {}
        downloads.spawn(download);
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hub").field(&self.shared.config).finish()
    }
}

#[async_trait]
impl ModelSource for Hub {
    async fn ensure(&self, model: &ModelRef, events: Arc<dyn EventSink>) -> Result<LocalModel, JobFailure> {
        let flight = self.shared.flights.join(model, |progress| {
            let trace = events.trace().cloned();
            let (meters, bars) = (self.shared.meters.clone(), self.shared.bars.clone());
            let reporter = Arc::new(Reporter::new(progress, meters, bars, model.to_string(), trace));
            self.spawn(Arc::clone(&self.shared).fly(model.clone(), reporter));
        });
        let local = follow(flight, model, &*events).await?;
        self.shared.note(model, Some(&local));
        Ok(local)
    }

    fn on_disk(&self) -> Vec<String> {
        self.shared.on_disk().keys().cloned().collect()
    }

    fn at_once(&self) -> usize {
        at_once(&self.shared.config)
    }

    fn under_way(&self) -> Vec<ModelDownload> {
        self.shared.flights.list()
    }
}

impl Measured for Hub {
    fn measure(&self, readings: &mut Readings) {
        self.shared.meters.measure(readings);
    }
}

#[async_trait]
impl InputSource for Hub {
    async fn fetch(
        &self,
        scope: &RunScope,
        asset: &AssetRef,
        directory: &Path,
    ) -> Result<LocalFile, JobFailure> {
        let shared = &self.shared;
        let (meters, since) = (&shared.meters, Instant::now());
        let fetched = input::fetch(&shared.config, &shared.client, meters, scope, asset, directory).await;
        meters.input(fetched.is_ok(), since.elapsed());
        Ok(fetched?)
    }
}

fn at_once(config: &HubConfig) -> usize {
    config.parallel_downloads.max(1)
}

impl Shared {
    async fn fly(self: Arc<Self>, model: ModelRef, reporter: Arc<Reporter>) {
        let (landing, since) = (Landing { shared: &self, model: &model }, Instant::now());
        let brought = self.bringer.bring(&model, &reporter, &self.slots).await;
        self.forget(&brought.evicted);
        let landed = match &brought.outcome {
            Ok(_) if !reporter.has_begun() => Landed::Hit,
            Ok(_) => Landed::Downloaded,
            Err(_) => Landed::Failed,
        };
        self.meters.landed(landed, since.elapsed());
        self.note(&model, brought.outcome.as_ref().ok());
        // Those who come from here on look at the disk again; only then those who wait are told.
        drop(landing);
        reporter.end(brought.outcome.map_err(SharedError::from));
    }

    fn note(&self, model: &ModelRef, local: Option<&LocalModel>) {
        let name = model.known_as().to_owned();
        let place = |local: &LocalModel| local.root.file_name().unwrap_or_default().to_string_lossy().into();
        match local.map(place) {
            Some(key) => self.on_disk().insert(name, key),
            None => self.on_disk().remove(&name),
        };
    }

    fn forget(&self, evicted: &[String]) {
        self.meters.evicted.add(evicted.len() as u64);
        self.on_disk().retain(|_, key| !evicted.contains(key));
    }

    fn on_disk(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.on_disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a flight, also when its task is dropped or panics.
struct Landing<'a> {
    shared: &'a Shared,
    model: &'a ModelRef,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.shared.flights.land(self.model);
    }
}

#[cfg(test)]
mod tests;
