//! What user code is given: the facts of its run, and the ways to say and save something.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Map, Value};

use crate::{
    asset::{Asset, AssetRef},
    cancel::{CancelReason, Cancellation},
    event::{Event, LogLevel},
    failure::WorkerError,
    id::{FunctionName, RunId, TenantId, UserId},
    output::{ByteStream, OutputBody},
    ports::{EventSink, FileStore, SaveMode, SaveRequest, Watch},
    scope::RunScope,
    trace::TraceContext,
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
    /// `None` once the function has returned.
    attached: Mutex<Option<Vec<SaveRequest>>>,
}

/// Most outputs that one run attaches: each is held until the function returns.
const MAX_ATTACHED: usize = 1024;

impl ActionContext {
    /// A context; the runtime makes them, and so does the testkit.
    pub fn new(
        facts: impl Into<Arc<RunFacts>>,
        cancellation: Cancellation,
        events: Arc<dyn EventSink>,
        files: Arc<dyn FileStore>,
    ) -> Self {
        let attached = Mutex::new(Some(Vec::new()));
        Self(Arc::new(Inner { facts: facts.into(), watch: Watch { cancellation, events }, files, attached }))
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

    /// The place in a trace below which the run works, for the function's own spans and requests: its `parent` and `state` are the
    /// values of the headers `traceparent` and `tracestate`. `None`: the scheduler named none, and the worker makes none.
    pub fn trace(&self) -> Option<&TraceContext> {
        self.0.facts.scope.trace.as_ref()
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
    /// The reference lies elsewhere, the file API refuses or cannot be reached, the data is too large, or the run is told
    /// to stop.
    pub async fn save_bytes(&self, reference: &str, data: impl Into<Bytes>) -> Result<Asset, WorkerError> {
        self.save(reference, OutputBody::Bytes(data.into()), SaveMode::Overwrite).await
    }

    /// [`save_bytes`](Self::save_bytes) by its other name.
    ///
    /// # Errors
    /// As `save_bytes`.
    pub async fn save_bytes_overwrite(
        &self,
        reference: &str,
        data: impl Into<Bytes>,
    ) -> Result<Asset, WorkerError> {
        self.save_bytes(reference, data).await
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

    /// [`save_file`](Self::save_file) by its other name.
    ///
    /// # Errors
    /// As `save_file`.
    pub async fn save_file_overwrite(
        &self,
        reference: &str,
        path: impl Into<PathBuf>,
    ) -> Result<Asset, WorkerError> {
        self.save_file(reference, path).await
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

    /// Stores what a stream makes under `runs/<run_id>/outputs/…`. It is put on disk first, and never in memory as a whole.
    ///
    /// # Errors
    /// As [`save_bytes`](Self::save_bytes), and the stream's own.
    pub async fn save_stream(
        &self,
        reference: &str,
        chunks: impl Stream<Item = Result<Bytes, WorkerError>> + Send + 'static,
    ) -> Result<Asset, WorkerError> {
        self.save(reference, ByteStream::new(chunks).into(), SaveMode::Overwrite).await
    }

    /// [`save_stream`](Self::save_stream) by its other name.
    ///
    /// # Errors
    /// As `save_stream`.
    pub async fn save_stream_overwrite(
        &self,
        reference: &str,
        chunks: impl Stream<Item = Result<Bytes, WorkerError>> + Send + 'static,
    ) -> Result<Asset, WorkerError> {
        self.save_stream(reference, chunks).await
    }

    /// Like [`save_stream`](Self::save_stream), and fails if something is there already.
    ///
    /// # Errors
    /// As `save_stream`, and `validation` when something is there already.
    pub async fn save_stream_create(
        &self,
        reference: &str,
        chunks: impl Stream<Item = Result<Bytes, WorkerError>> + Send + 'static,
    ) -> Result<Asset, WorkerError> {
        self.save(reference, ByteStream::new(chunks).into(), SaveMode::CreateOnly).await
    }

    /// Has bytes, a file or a stream stored as `runs/<run_id>/outputs/<name>` once the function has returned and its GPU is
    /// free, and returns the asset to put into the result at once. The result waits until it is stored, and the run fails if
    /// it cannot be. What is in memory stays there until then.
    ///
    /// The asset knows no digest and no media type, which are found while it is stored.
    ///
    /// # Errors
    /// The function has returned already, or has attached 1024 outputs.
    pub fn attach(&self, name: &str, body: impl Into<OutputBody>) -> Result<Asset, WorkerError> {
        let (reference, body) = (self.output_ref(name), body.into());
        let size_bytes = match &body {
            OutputBody::Bytes(data) => Some(data.len() as u64),
            OutputBody::File(_) | OutputBody::Stream(_) => None,
        };
        let mut attached = self.0.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let attached = attached
            .as_mut()
            .ok_or_else(|| WorkerError::internal("`attach` was called after the function had returned"))?;
        if attached.len() == MAX_ATTACHED {
            return Err(WorkerError::validation(format!("a run attaches at most {MAX_ATTACHED} outputs")));
        }
        attached.push(SaveRequest { reference: reference.clone(), body, mode: SaveMode::Overwrite });
        let tenant_id = self.tenant_id().map(str::to_owned);
        Ok(Asset::new(AssetRef { reference, tenant_id, mime_type: None, size_bytes, sha256: None }))
    }

    /// What was attached. Nothing can be attached afterwards: whoever calls this, once the function has returned, stores it.
    pub fn take_attached(&self) -> Vec<SaveRequest> {
        self.0.attached.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
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
