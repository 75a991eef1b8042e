//! What user code is given: the facts of its run, and the ways to say and save something.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    asset::Asset,
    cancel::{CancelReason, Cancellation},
    event::{Event, LogLevel},
    failure::WorkerError,
    id::{FunctionName, RunId, TenantId, UserId},
    output::OutputBody,
    ports::{EventSink, FileStore, SaveMode, SaveRequest, Watch},
    scope::RunScope,
    units::Deadline,
};

/// The facts of one run.
#[derive(Debug, Clone)]
pub struct RunFacts {
    /// Which run.
    pub run_id: RunId,
    /// Which function.
    pub function: FunctionName,
    /// Which attempt of the run; 0: the scheduler does not count.
    pub attempt: i64,
    /// Which of the tenant's users asked; `None`: not said.
    pub user_id: Option<UserId>,
    /// When the run must have ended; `None`: no limit.
    pub deadline: Option<Deadline>,
    /// Whose files it may touch.
    pub scope: RunScope,
}

/// Given to a function as its first parameter. Clones are the same context.
#[derive(Clone)]
pub struct ActionContext(Arc<Inner>);

struct Inner {
    facts: Arc<RunFacts>,
    watch: Watch,
    files: Arc<dyn FileStore>,
}

impl ActionContext {
    /// A context; the runtime makes them, and so does the testkit.
    pub fn new(
        facts: impl Into<Arc<RunFacts>>,
        cancellation: Cancellation,
        events: Arc<dyn EventSink>,
        files: Arc<dyn FileStore>,
    ) -> Self {
        Self(Arc::new(Inner { facts: facts.into(), watch: Watch { cancellation, events }, files }))
    }

    /// The run's id.
    pub fn run_id(&self) -> &str {
        self.0.facts.run_id.as_str()
    }

    /// Which attempt of the run this is; 0 when the scheduler does not count.
    pub fn attempt(&self) -> i64 {
        self.0.facts.attempt
    }

    /// Whose run it is.
    pub fn tenant_id(&self) -> Option<&str> {
        self.0.facts.scope.tenant_id.as_ref().map(TenantId::as_str)
    }

    /// Which of the tenant's users asked.
    pub fn user_id(&self) -> Option<&str> {
        self.0.facts.user_id.as_ref().map(UserId::as_str)
    }

    /// When the run must have ended; the worker ends it then, whether or not the function looks.
    pub fn deadline(&self) -> Option<Deadline> {
        self.0.facts.deadline
    }

    /// Time left until the deadline, zero once it has passed; `None` when there is none.
    pub fn time_remaining(&self) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.remaining())
    }

    /// Whether the run was told to stop. Blocking functions look at this between steps.
    pub fn is_canceled(&self) -> bool {
        self.cancel_reason().is_some()
    }

    /// Why the run was told to stop; `None` while it was not.
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.0.watch.cancellation.reason()
    }

    /// Waits until the run is told to stop.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn canceled(&self) -> CancelReason {
        self.0.watch.cancellation.canceled().await
    }

    /// Fails with `canceled` if the run was told to stop: `ctx.check_canceled()?` between steps.
    ///
    /// # Errors
    /// The run was told to stop.
    pub fn check_canceled(&self) -> Result<(), WorkerError> {
        match self.cancel_reason() {
            Some(reason) => Err(WorkerError::canceled(reason.as_str())),
            None => Ok(()),
        }
    }

    /// Tells the caller how far the run is: a share from 0 to 1 and, if it helps, what is being done. Never waits; when
    /// the connection cannot keep up, the oldest progress is dropped.
    pub fn progress<'a>(&self, fraction: f64, stage: impl Into<Option<&'a str>>) {
        self.say(Event::progress(fraction, stage.into()));
    }

    /// Sends the caller a line. Never waits.
    pub fn log(&self, message: &str, level: LogLevel) {
        self.say(Event::log(message, level));
    }

    /// Sends the caller an event of the function's own. Never waits. A `timestamp` is added unless there is one.
    pub fn emit(&self, event_type: &str, payload: Map<String, Value>) {
        self.say(Event::custom(event_type.to_owned(), payload));
    }

    /// Stores bytes under `runs/<run_id>/outputs/…`, in place of what was there.
    ///
    /// # Errors
    /// The reference lies elsewhere, the file API refuses or cannot be reached, or the data is too large.
    pub async fn save_bytes(&self, reference: &str, data: impl Into<Bytes>) -> Result<Asset, WorkerError> {
        self.save(reference, OutputBody::Bytes(data.into()), SaveMode::Overwrite).await
    }

    /// Like [`save_bytes`](Self::save_bytes), and fails if something is there already.
    ///
    /// # Errors
    /// As `save_bytes`, and `validation` when something is there already.
    pub async fn save_bytes_create(
        &self,
        reference: &str,
        data: impl Into<Bytes>,
    ) -> Result<Asset, WorkerError> {
        self.save(reference, OutputBody::Bytes(data.into()), SaveMode::CreateOnly).await
    }

    /// Stores a file under `runs/<run_id>/outputs/…`, streamed from disk.
    ///
    /// # Errors
    /// As [`save_bytes`](Self::save_bytes), and when the file cannot be read.
    pub async fn save_file(&self, reference: &str, path: impl Into<PathBuf>) -> Result<Asset, WorkerError> {
        self.save(reference, OutputBody::File(path.into()), SaveMode::Overwrite).await
    }

    /// Like [`save_file`](Self::save_file), and fails if something is there already.
    ///
    /// # Errors
    /// As `save_file`, and `validation` when something is there already.
    pub async fn save_file_create(
        &self,
        reference: &str,
        path: impl Into<PathBuf>,
    ) -> Result<Asset, WorkerError> {
        self.save(reference, OutputBody::File(path.into()), SaveMode::CreateOnly).await
    }

    /// Runs a future from a blocking function: `ctx.block_on(ctx.save_bytes(…))`.
    ///
    /// # Panics
    /// It was called from async code, which should `.await` instead.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        tokio::runtime::Handle::current().block_on(future)
    }

    /// What an upload for this run hears and says; the runtime stores outputs with it.
    pub fn watch(&self) -> &Watch {
        &self.0.watch
    }

    /// A path for one of this run's outputs: `runs/<run_id>/outputs/<name>`.
    pub fn output_ref(&self, name: &str) -> String {
        format!("runs/{}/outputs/{name}", self.run_id())
    }

    async fn save(&self, reference: &str, body: OutputBody, mode: SaveMode) -> Result<Asset, WorkerError> {
        let request = SaveRequest { reference: reference.to_owned(), body, mode };
        Ok(self.0.files.save(&self.0.facts.scope, request, &self.0.watch).await?)
    }

    fn say(&self, event: Event) {
        self.0.watch.events.emit(event.about(&self.0.facts.run_id));
    }
}
