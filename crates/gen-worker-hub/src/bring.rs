//! Brings a model: what is here already, what its source says, what is missing, and the whole put together.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use gen_worker_core::{LocalModel, ModelRef, Secret};
use gen_worker_net::HttpClient;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::{
    blocking::blocking,
    config::HubConfig,
    error::HubError,
    fetch::{Fetch, Lanes},
    progress::Reporter,
    snapshot::RemoteFile,
    source::{Resolved, Sources, local},
    store::{Claim, Entry, Led, Lock, MarkedFile, Marker, Room, Store, Verdict},
    token,
};

/// How long a tag is taken to lead where it led.
const SETTLED: Duration = Duration::from_secs(300);
/// How often a model is put together anew when others remove its files meanwhile.
const TRIES: usize = 3;

/// Brings models into the store.
#[derive(Debug)]
pub(crate) struct Bringer {
    config: HubConfig,
    client: HttpClient,
    sources: Sources,
    store: Store,
    room: Room,
}

/// How it went, and what had to go for it.
pub(crate) struct Brought {
    pub(crate) outcome: Result<LocalModel, HubError>,
    pub(crate) evicted: Vec<String>,
}

/// One model to put together.
struct Job<'a> {
    model: &'a ModelRef,
    resolved: &'a Resolved,
    entry: Entry,
    reporter: &'a Arc<Reporter>,
}

impl Bringer {
    pub(crate) fn new(config: HubConfig, client: HttpClient, store: Store) -> Self {
        let sources = Sources::new(config.clone(), client.clone());
        let room = Room::new(store.clone());
        Self { config, client, sources, store, room }
    }

    /// Makes the model present. `slots` bounds how many are downloaded at once.
    pub(crate) async fn bring(
        &self,
        model: &ModelRef,
        reporter: &Arc<Reporter>,
        slots: &Semaphore,
    ) -> Brought {
        let outcome = self.present(model, reporter, slots).await;
        Brought { outcome, evicted: self.room.take_gone() }
    }

    async fn present(
        &self,
        model: &ModelRef,
        reporter: &Arc<Reporter>,
        slots: &Semaphore,
    ) -> Result<LocalModel, HubError> {
        if let Some(path) = model.file() {
            let (model, path) = (model.clone(), path.to_owned());
            return blocking(move || local::open(&model, &path)).await;
        }
        let led = self.recall(model).await?;
        if let Some(led) = led.as_ref().filter(|led| is_settled(led))
            && let Some(local) = self.open(model, &led.key).await?
        {
            return Ok(local);
        }
        let token = token::current(&self.config, model).await?;
        let brought = self.look_up(model, led.as_ref(), token.as_ref(), reporter, slots).await;
        if !matches!(brought, Err(HubError::Refused { .. })) {
            return brought;
        }
        let newer = token::current(&self.config, model).await?;
        if newer == token {
            return brought;
        }
        info!(%model, "the credential of its source has been renewed; asking again");
        self.look_up(model, led.as_ref(), newer.as_ref(), reporter, slots).await
    }

    /// Asks its source where the model is, and brings it.
    async fn look_up(
        &self,
        model: &ModelRef,
        led: Option<&Led>,
        token: Option<&Secret<String>>,
        reporter: &Arc<Reporter>,
        slots: &Semaphore,
    ) -> Result<LocalModel, HubError> {
        match (self.sources.resolve(model, token, reporter.trace()).await, led) {
            (Ok(resolved), _) => self.realise(model, resolved, token, reporter, slots).await,
            (Err(error), Some(led)) if error.is_transient() => match self.open(model, &led.key).await? {
                Some(local) => {
                    warn!(%model, %error, "its source cannot be asked; taking what is here");
                    Ok(local)
                }
                None => Err(error),
            },
            (Err(error), _) => Err(error),
        }
    }

    /// Puts the model together, asking for its addresses anew when they expire.
    async fn realise(
        &self,
        model: &ModelRef,
        mut resolved: Resolved,
        token: Option<&Secret<String>>,
        reporter: &Arc<Reporter>,
        slots: &Semaphore,
    ) -> Result<LocalModel, HubError> {
        // A renewal is worth another one only if it brought something.
        let mut least = 0;
        loop {
            let key = resolved.snapshot.key(model);
            let job = Job { model, resolved: &resolved, entry: self.store.entry(&key), reporter };
            match self.obtain(&job, slots).await {
                Err(HubError::Expired { .. }) if reporter.done() >= least => {
                    least = reporter.done() + 1;
                    info!(%model, "addresses have expired; asking for new ones");
                    resolved = self.sources.resolve(model, token, reporter.trace()).await?;
                }
                Err(HubError::Expired { model, status }) => {
                    return Err(HubError::Refused { model, status });
                }
                Err(error) => return Err(error),
                Ok(local) => {
                    self.remember(model, key, resolved.moves).await?;
                    return Ok(local);
                }
            }
        }
    }

    async fn obtain(&self, job: &Job<'_>, slots: &Semaphore) -> Result<LocalModel, HubError> {
        if let Some(local) = self.open(job.model, &job.entry.key).await? {
            return Ok(local);
        }
        let store = self.store.clone();
        blocking(move || Ok(store.prepare()?)).await?;
        let lock = job.entry.lock().await?;
        if let Some(local) = self.open(job.model, &job.entry.key).await? {
            return Ok(local);
        }
        self.set_aside(&job.entry).await?;
        let _slot = slots.acquire().await.expect("the semaphore is never closed");
        let mut tries = TRIES;
        loop {
            tries -= 1;
            match self.build(job).await {
                Err(HubError::Store { .. }) if tries > 0 && self.lost_something(job).await? => {}
                Err(error) => return Err(error),
                Ok(local) => {
                    blocking(move || Ok(lock.remove()?)).await?;
                    return Ok(local);
                }
            }
        }
    }

    async fn build(&self, job: &Job<'_>) -> Result<LocalModel, HubError> {
        let started = Instant::now();
        let files = &job.resolved.snapshot.files;
        let need = self.missing(job).await?;
        job.reporter.begin(0, job.resolved.snapshot.size_bytes(), job.resolved.source);
        let claim = Arc::new(self.make_room(need).await?);
        let count = self.config.connections.max(1);
        let lanes = Lanes {
            permits: Arc::new(Semaphore::new(count)),
            count,
            range_bytes: Some(self.config.range_bytes).filter(|bytes| *bytes > 0).unwrap_or(u64::MAX),
        };
        let fetches = stream::iter(files.clone())
            .map(|file| self.have(job, file, &lanes, &claim))
            .buffer_unordered(count);
        let mut marked: Vec<MarkedFile> = fetches.try_collect().await?;
        marked.sort_by(|a, b| a.path.cmp(&b.path));
        let local = self.publish(job, marked).await?;
        let elapsed_ms = started.elapsed().as_millis() as u64;
        info!(model = %job.model, bytes = local.size_bytes, elapsed_ms, "model downloaded");
        Ok(local)
    }

    /// Makes one file present and part of the model.
    async fn have(
        &self,
        job: &Job<'_>,
        file: RemoteFile,
        lanes: &Lanes,
        claim: &Arc<Claim>,
    ) -> Result<MarkedFile, HubError> {
        let meter = job.reporter.file();
        let place = self.store.part(&job.entry.key, &file);
        // Another model may want this file too, and be about to have it.
        let lock = Lock::wait(&place.lock).await?;
        let (object, size_bytes, digest) = match self.kept(&file).await? {
            Some((object, size_bytes)) => {
                meter.set(size_bytes);
                let digest = file.promise.digest.expect("what is kept is found by its digest");
                (object, size_bytes, digest)
            }
            None => {
                let fetch = Arc::new(Fetch {
                    client: self.client.clone(),
                    model: job.model.clone(),
                    file: file.clone(),
                    lanes: lanes.clone(),
                    meter,
                    address: Default::default(),
                    claim: claim.clone(),
                });
                let fetched = fetch.run(&place).await?;
                let (size_bytes, digest) = (fetched.size_bytes, fetched.digest);
                let store = self.store.clone();
                (blocking(move || Ok(store.keep(&place, &fetched)?)).await?, size_bytes, digest)
            }
        };
        let (entry, path) = (job.entry.clone(), file.path.clone());
        blocking(move || {
            entry.adopt(&path, &object)?;
            Ok(lock.remove()?)
        })
        .await?;
        Ok(MarkedFile { path: file.path.to_string(), size_bytes, digest: digest.to_string() })
    }

    /// The file as another model left it.
    async fn kept(&self, file: &RemoteFile) -> Result<Option<(PathBuf, u64)>, HubError> {
        let Some(digest) = file.promise.digest else { return Ok(None) };
        let (object, size) = (self.store.object(digest), file.promise.size_bytes);
        blocking(move || {
            let found = std::fs::metadata(&object).ok().map(|found| found.len());
            Ok(found.filter(|found| size.is_none_or(|size| size == *found)).map(|found| (object, found)))
        })
        .await
    }

    /// How many bytes of room the model takes beyond what it has.
    async fn missing(&self, job: &Job<'_>) -> Result<u64, HubError> {
        let (store, entry, files) =
            (self.store.clone(), job.entry.clone(), job.resolved.snapshot.files.clone());
        blocking(move || {
            entry.build()?;
            let missing = |file: &RemoteFile| {
                let kept = file.promise.digest.is_some_and(|digest| store.object(digest).exists());
                let held = store.part(&entry.key, file).held(file.promise);
                let size = file.promise.size_bytes.unwrap_or_default();
                if kept { 0 } else { size.saturating_sub(held) }
            };
            Ok(files.iter().map(missing).sum())
        })
        .await
    }

    async fn make_room(&self, need: u64) -> Result<Claim, HubError> {
        let (store, room) = (self.store.clone(), self.room.clone());
        blocking(move || {
            store.sweep(SystemTime::now())?;
            room.claim(need)
        })
        .await
    }

    async fn publish(&self, job: &Job<'_>, files: Vec<MarkedFile>) -> Result<LocalModel, HubError> {
        let marker = Marker {
            written: job.model.known_as().to_owned(),
            revision: job.resolved.snapshot.revision.clone(),
            files,
        };
        let (entry, model) = (job.entry.clone(), job.model.clone());
        blocking(move || Ok(entry.publish(&model, &marker)?)).await
    }

    /// Sets aside what is damaged, so that it is fetched once more.
    async fn set_aside(&self, entry: &Entry) -> Result<(), HubError> {
        let (store, entry) = (self.store.clone(), entry.clone());
        blocking(move || {
            if let Verdict::Damaged(marker) = entry.look() {
                let damaged: Vec<_> = entry.damaged_in_size(&marker).collect();
                store.quarantine(&entry, &damaged)?;
            }
            Ok(())
        })
        .await
    }

    /// Whether a file that was kept is gone: another process made room meanwhile.
    async fn lost_something(&self, job: &Job<'_>) -> Result<bool, HubError> {
        Ok(self.missing(job).await? > 0)
    }

    async fn recall(&self, model: &ModelRef) -> Result<Option<Led>, HubError> {
        let (store, model, pickles) = (self.store.clone(), model.clone(), self.takes_pickles(model));
        // What was selected under another rule lacks files, or has some that are refused.
        blocking(move || Ok(store.recall(&model).filter(|led| led.pickles == pickles))).await
    }

    /// Whether files that can run code are taken from where this model is.
    fn takes_pickles(&self, model: &ModelRef) -> bool {
        self.config.allow_pickle && model.hugging_face().is_some()
    }

    async fn open(&self, model: &ModelRef, key: &str) -> Result<Option<LocalModel>, HubError> {
        let (entry, model) = (self.store.entry(key), model.clone());
        blocking(move || Ok(entry.open(&model))).await
    }

    async fn remember(&self, model: &ModelRef, key: String, moves: bool) -> Result<(), HubError> {
        let led = Led {
            written: model.known_as().to_owned(),
            key,
            asked: moves.then(unix_seconds),
            pickles: self.takes_pickles(model),
        };
        let (store, model) = (self.store.clone(), model.clone());
        blocking(move || Ok(store.remember(&model, &led)?)).await
    }
}

/// Whether a reference need not be asked for again.
fn is_settled(led: &Led) -> bool {
    // A clock that was set back makes it old.
    led.asked.is_none_or(|asked| unix_seconds().checked_sub(asked).is_some_and(|age| age < SETTLED.as_secs()))
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
