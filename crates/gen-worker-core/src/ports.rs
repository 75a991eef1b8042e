//! What the runtime needs of the outside world. Other crates implement these; the facade joins them.

use std::{
    any::Any,
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use serde::Serialize;

use crate::{
    asset::{Asset, AssetRef, LocalFile},
    cancel::Cancellation,
    context::RunFacts,
    event::Event,
    failure::{JobFailure, WorkerError},
    id::RunId,
    metric::Readings,
    model_ref::{LocalModel, ModelRef},
    output::{OutputBody, RawOutput},
    scope::RunScope,
    secret::Secret,
    trace::TraceContext,
};

/// Where events go. Never waits: what does not fit is dropped and counted.
pub trait EventSink: Send + Sync {
    /// Takes an event.
    fn emit(&self, event: Event);

    /// The place in a trace below which is done what is spoken of; `None`: it belongs to none.
    fn trace(&self) -> Option<&TraceContext> {
        None
    }
}

/// What an upload hears and says while it moves bytes. Clones share both.
#[derive(Clone)]
pub struct Watch {
    /// Tells the upload to stop; it is given up within a second.
    pub cancellation: Cancellation,
    /// Where it says how far it is.
    pub events: Arc<dyn EventSink>,
}

impl Watch {
    /// The result of `work`, or a failure of kind `canceled` as soon as the signal is given; `work` is dropped then.
    ///
    /// # Errors
    /// Those of `work`, and the signal.
    pub async fn unless_canceled<T>(
        &self,
        work: impl Future<Output = Result<T, JobFailure>>,
    ) -> Result<T, JobFailure> {
        tokio::select! {
            biased;
            reason = self.cancellation.canceled() => Err(WorkerError::canceled(reason.as_str()).into()),
            done = work => done,
        }
    }
}

/// What to do when something is already stored under a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaveMode {
    /// Put the new content in its place.
    Overwrite,
    /// Fail with `validation`.
    CreateOnly,
}

/// One file to store for a run.
#[derive(Debug, Clone)]
pub struct SaveRequest {
    /// Where; must lie under `runs/<run_id>/outputs/`.
    pub reference: String,
    /// What.
    pub body: OutputBody,
    /// What to do when something is there.
    pub mode: SaveMode,
}

/// Stores files that a run saves while it works.
#[async_trait]
pub trait FileStore: Send + Sync {
    /// Whether there is a place for the files of this run.
    fn has_place(&self, _scope: &RunScope) -> bool {
        true
    }

    /// Stores one file and returns what the store says of it. Given up when `watch` says so.
    ///
    /// # Cancel safety
    /// Dropping the future may leave nothing or the whole file, never a part that looks whole.
    async fn save(&self, scope: &RunScope, request: SaveRequest, watch: &Watch) -> Result<Asset, JobFailure>;
}

/// Makes the files that a payload names present on this machine.
#[async_trait]
pub trait InputSource: Send + Sync {
    /// Fetches one file into `directory`, which belongs to the run and is removed after it.
    async fn fetch(
        &self,
        scope: &RunScope,
        asset: &AssetRef,
        directory: &Path,
    ) -> Result<LocalFile, JobFailure>;
}

/// A model on its way to this machine, as it is listed for those who look into a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelDownload {
    /// Its canonical reference.
    pub model: String,
    /// Bytes that are there; 0 also while it waits for a place or its source is asked.
    pub bytes_done: u64,
    /// Bytes that it has; `None`: not known yet.
    pub bytes_total: Option<u64>,
}

/// Makes models present on disk.
#[async_trait]
pub trait ModelSource: Send + Sync {
    /// Makes a model present, complete and verified, and says on `events` how far it is. Idempotent; callers that ask for
    /// the same model share one download.
    async fn ensure(&self, model: &ModelRef, events: Arc<dyn EventSink>) -> Result<LocalModel, JobFailure>;

    /// The models on disk, as they were written when they were asked for.
    fn on_disk(&self) -> Vec<String>;

    /// How many models are brought at once, at least 1; whoever asks for more waits.
    fn at_once(&self) -> usize;

    /// The models that are looked for or downloaded now. Waits for nothing.
    fn under_way(&self) -> Vec<ModelDownload> {
        Vec::new()
    }
}

/// Keeps a model in memory while it is alive.
pub type ModelLease = Arc<dyn Any + Send + Sync>;

/// For whom a model is leased. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct LeaseHolder {
    /// The run, which an unload that is refused names; `None`: no run.
    pub run_id: Option<RunId>,
    /// Told when the run has to stop: what it computes with the model is ended then.
    pub cancellation: Cancellation,
}

/// What models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ModelDevice {
    /// The machine's processors.
    Processor,
    /// A GPU.
    Gpu,
}

/// What a model manager holds and has done since its start. Bytes are those of the memory that models run in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ModelStats {
    /// Models in memory.
    pub resident: u64,
    /// Leases that were granted and have not ended.
    pub leased: u64,
    /// Loads that were begun.
    pub loads: u64,
    /// Leases of models that were in memory when they were asked for.
    pub hits: u64,
    /// Leases of models that were not, those that were never granted included.
    pub misses: u64,
    /// Models that were taken out of memory.
    pub evictions: u64,
    /// Bytes that models take.
    pub used_bytes: u64,
    /// Bytes that they may take; 0: the manager has no budget.
    pub budget_bytes: u64,
}

/// What models take of the memory of one device, or of main memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ModelMemory {
    /// Bytes that models take.
    pub used_bytes: u64,
    /// Bytes that they may take; 0: the manager has no budget there.
    pub budget_bytes: u64,
}

/// A model that is leased, as it is listed for those who look into a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeasedModel {
    /// As it was written when it was asked for.
    pub model: String,
    /// What it is charged of the memory that models run in; 0 until its load begins.
    pub bytes: u64,
    /// The runs that have it, in order; empty texts are no runs.
    pub held_by: Vec<String>,
    /// The runs that wait for it.
    pub waiting: Vec<String>,
}

/// Brings models into memory and keeps them there. `gen_worker_core::testing::check_model_manager` says what is asked of one.
#[async_trait]
pub trait ModelManager: Send + Sync {
    /// Where to say what becomes of models ([`Event::model_state`]). Called once, before the first model is asked for.
    fn report_to(&self, _events: Arc<dyn EventSink>) {}

    /// Brings a model into memory, where it stays while there is room. Idempotent.
    ///
    /// # Errors
    /// Those of [`lease`](Self::lease).
    ///
    /// # Cancel safety
    /// When the future is dropped the model may come into memory nevertheless, unleased.
    async fn load(&self, local: &LocalModel) -> Result<(), JobFailure>;

    /// A lease of the model, loaded first if need be. Callers that ask for the same model share one load. While the lease
    /// or a clone of it is alive, the model stays in memory.
    ///
    /// # Errors
    /// `validation`: the files hold no model that can be run. `resource`: it does not fit on this machine. `retryable`: it
    /// did not fit beside what was leased in all the time that it may wait.
    ///
    /// # Cancel safety
    /// As of `load`.
    async fn lease(&self, local: &LocalModel, holder: &LeaseHolder) -> Result<ModelLease, JobFailure>;

    /// Drops a model from memory, and returns when it is gone. Succeeds if it was not there.
    ///
    /// # Errors
    /// `retryable`: it is leased; the message names the runs.
    async fn unload(&self, model: &ModelRef) -> Result<(), JobFailure>;

    /// The models in memory, as they were written when they were asked for. Waits for nothing.
    fn resident(&self) -> Vec<String>;

    /// Models on disk of which the model source does not know, written like those of `resident`. Waits for nothing.
    fn on_disk(&self) -> Vec<String> {
        Vec::new()
    }

    /// What it holds. Waits for nothing.
    fn stats(&self) -> ModelStats;

    /// The memory that models run in, device by device in the order in which the driver shows them; main memory alone where they
    /// run on the processor. Together they are what [`stats`](Self::stats) says. Waits for nothing.
    fn memory(&self) -> Vec<ModelMemory> {
        let ModelStats { used_bytes, budget_bytes, .. } = self.stats();
        vec![ModelMemory { used_bytes, budget_bytes }]
    }

    /// The models that are leased or waited for, and by whom. Waits for nothing.
    fn leases(&self) -> Vec<LeasedModel> {
        Vec::new()
    }

    /// What models really run on.
    fn device(&self) -> ModelDevice;

    /// The version of the engine that runs them; `None`: it has none.
    fn engine_version(&self) -> Option<String>;
}

/// Where an output was stored. Only a finished upload makes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredOutput {
    /// Where the caller finds it.
    pub url: String,
    /// The object's key, for S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The object's bucket, for S3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// The SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: String,
    /// Its media type.
    pub content_type: String,
    /// What the store calls this version of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

/// Stores whole outputs where the caller said.
pub trait OutputStore: Send + Sync {
    /// Understands a payload's `output_upload`, given as JSON text, before the run starts.
    ///
    /// # Errors
    /// `validation`: it has an unknown key, lacks one, or names an address that must not be reached.
    fn target(&self, output_upload: Secret<String>) -> Result<Arc<dyn OutputTarget>, JobFailure>;

    /// Blocks until nothing is left half done at any store, or a few seconds have passed. Called once, when the worker ends
    /// and nothing is stored any more.
    fn settle(&self) {}
}

/// One place for one output.
#[async_trait]
pub trait OutputTarget: Send + Sync {
    /// The media type that whatever is stored there will have; `None`: that of the output.
    fn content_type(&self) -> Option<&str> {
        None
    }

    /// Stores the output there. Given up when `watch` says so.
    ///
    /// # Cancel safety
    /// Dropping the future may leave nothing or the whole output, never a part that looks whole.
    async fn store(&self, output: &RawOutput, watch: &Watch) -> Result<StoredOutput, JobFailure>;
}

/// Holds the worker's own credential for the scheduler.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// The bearer token for the next dial; `None`: dial without one.
    fn bearer(&self) -> Option<Secret<String>>;

    /// Whether runs may be taken at that time: not once a verified token has expired. Never waits.
    fn usable(&self, _at: SystemTime) -> bool {
        true
    }

    /// Looks for a newer token where the worker's token comes from. Called before each dial, after the scheduler refused
    /// the token, and when it is about to expire. A newer token that is refused leaves the one held.
    ///
    /// # Errors
    /// There is no token to dial with: one is needed, and none has passed its check.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the token held.
    async fn renew(&self) -> Result<(), JobFailure> {
        Ok(())
    }

    /// Takes a token that the scheduler sent, for the next dial.
    ///
    /// # Errors
    /// It is refused; the one held stays.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the token held.
    async fn refresh(&self, token: Secret<String>) -> Result<(), JobFailure>;
}

/// Shows runs to a tracing system.
pub trait Tracer: Send + Sync {
    /// A run begins, below its scope's trace if it has one. Called on the control thread: waits for nothing.
    fn begin(&self, run: &RunFacts) -> Box<dyn RunSpan>;

    /// Blocks until what was recorded is told, or a time set for it has passed. Called once, when the worker ends.
    fn settle(&self);
}

/// A run as a tracing system sees it.
pub trait RunSpan: Send + Sync {
    /// Below which its work is done; `None`: that cannot be told.
    fn trace(&self) -> Option<TraceContext>;

    /// It has gone through a stage.
    fn stage(&self, name: &'static str, began: SystemTime, ended: SystemTime);

    /// It has ended. `failure`: what its caller was told; `None`: it succeeded.
    fn end(&self, outcome: &'static str, failure: Option<&str>);
}

/// Has numbers for those who watch the worker.
pub trait Measured: Send + Sync {
    /// Adds what there is at this moment. Called on the control thread: takes no lock that is held while work goes on.
    fn measure(&self, readings: &mut Readings);
}

/// What can be said of a worker without asking anybody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// How long ago its control loop last turned.
    pub turned_ago: Duration,
    /// Whether it has ever been connected to a scheduler.
    pub was_connected: bool,
    /// Whether it is now.
    pub is_connected: bool,
    /// Whether it was told to leave.
    pub is_leaving: bool,
    /// Why it takes no runs; `None`: it does.
    pub closed: Option<&'static str>,
    /// How many functions are advertised.
    pub available: usize,
    /// The functions that wait for set-ups or for their models.
    pub loading: Vec<String>,
}

/// A worker as it is watched.
pub trait Vitals: Measured {
    /// How it is at this moment.
    fn condition(&self) -> Condition;
}

/// Watches a worker, and tells others of it.
#[async_trait]
pub trait Observer: Send + Sync {
    /// Watches for as long as it is polled, on the worker's control thread: it must not block.
    async fn watch(&self, worker: Arc<dyn Vitals>);
}
