//! The hub: models made present, each by one task that outlives those who wait for it.

use std::{
    collections::BTreeSet,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use gen_worker_core::{
    AssetRef, JobFailure, LocalFile, LocalModel, ModelRef, RunScope,
    ports::{EventSink, InputSource, ModelSource},
};
use gen_worker_net::HttpClient;
use indicatif::MultiProgress;
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};
use tracing::info;

use crate::{
    config::HubConfig,
    error::{HubError, SharedError},
    fetch::Fetch,
    flight::{Flights, follow},
    input,
    progress::Reporter,
    resolve::{Origin, resolve},
    source::{direct::Remote, local},
    store::{Entry, Store},
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
    store: Store,
    flights: Flights,
    slots: Semaphore,
    /// As the scheduler knows them.
    on_disk: Mutex<BTreeSet<String>>,
    bars: Option<MultiProgress>,
}

impl Hub {
    /// A hub over the models that the cache directory holds. Reads that directory; connects to nothing.
    pub fn new(config: HubConfig, client: HttpClient) -> Self {
        let store = Store::new(&config.cache_dir);
        let shared = Shared {
            on_disk: Mutex::new(store.scan().into_iter().collect()),
            store,
            flights: Flights::default(),
            slots: Semaphore::new(config.parallel_downloads.max(1)),
            bars: config.show_bars.then(MultiProgress::new),
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
            let bars = self.shared.bars.clone();
            let reporter = Reporter::new(progress, bars, model.to_string());
            self.spawn(Arc::clone(&self.shared).fly(model.clone(), reporter));
        });
        let local = follow(flight, model, &*events).await?;
        self.shared.note(model, true);
        Ok(local)
    }

    fn on_disk(&self) -> Vec<String> {
        let on_disk = self.shared.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        on_disk.iter().cloned().collect()
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
        let Shared { config, client, .. } = &*self.shared;
        Ok(input::fetch(config, client, scope, asset, directory).await?)
    }
}

impl Shared {
    async fn fly(self: Arc<Self>, model: ModelRef, reporter: Reporter) {
        let landing = Landing { shared: &self, model: &model };
        let outcome = self.bring(&model, &reporter).await;
        self.note(&model, outcome.is_ok());
        // Those who come from here on look at the disk again; only then those who wait are told.
        drop(landing);
        reporter.end(outcome.map_err(SharedError::from));
    }

    async fn bring(&self, model: &ModelRef, reporter: &Reporter) -> Result<LocalModel, HubError> {
        let entry = self.store.entry(model);
        if let Some(local) = load(&entry, model).await {
            return Ok(local);
        }
        match resolve(&self.config, model)? {
            Origin::Local(path) => {
                let model = model.clone();
                blocking(move || local::open(&model, &path)).await
            }
            Origin::Remote(remote) => self.download(model, &entry, &remote, reporter).await,
        }
    }

    async fn download(
        &self,
        model: &ModelRef,
        entry: &Entry,
        remote: &Remote,
        reporter: &Reporter,
    ) -> Result<LocalModel, HubError> {
        let _lock = entry.lock().await?;
        if let Some(local) = load(entry, model).await {
            return Ok(local);
        }
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let started = Instant::now();
        let fetch = Fetch { client: &self.client, model, remote, work: entry.work.clone() };
        let file = fetch.run(reporter).await?;
        let bytes = file.size_bytes;
        let (place, published) = (entry.clone(), model.clone());
        let local = blocking(move || Ok(place.publish(&published, &file)?)).await?;
        let elapsed_ms = started.elapsed().as_millis() as u64;
        info!(%model, bytes, elapsed_ms, "model downloaded");
        Ok(local)
    }

    fn note(&self, model: &ModelRef, present: bool) {
        let mut on_disk = self.on_disk.lock().unwrap_or_else(PoisonError::into_inner);
        if present {
            on_disk.insert(model.known_as().to_owned());
        } else {
            on_disk.remove(model.known_as());
        }
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

async fn load(entry: &Entry, model: &ModelRef) -> Option<LocalModel> {
    let (entry, model) = (entry.clone(), model.clone());
    spawn_blocking(move || entry.load(&model)).await.ok().flatten()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests;
