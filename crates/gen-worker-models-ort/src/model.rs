//! A model in memory, as functions see it.

use std::{collections::HashMap, error::Error, fmt, path::Path, sync::Arc, time::Duration};

use gen_worker_core::{
    CallParts, Cancellation, Extract, JobFailure, LocalModel, ModelNeed, ModelRef, WorkerError,
};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    binding::OrtBinding,
    block::block_on_for,
    config::Provider,
    error::ModelError,
    files::{self, Graphs},
    graph::{Graph, Inputs, TensorSpec, list},
    kept::Kept,
    manager::Pin,
    outputs::Outputs,
    pool::{SessionPool, Work},
    session::{self, Opened, Recipe, Values},
    tensor::Tensor,
    warmup,
};

/// A model in memory, leased: it stays there at least until the last clone, and the last clone of each of its sessions, is
/// dropped.
///
/// [`run`](Self::run) and its siblings mean the model's main session: its only one, else the one of `model.onnx`.
#[derive(Clone)]
pub struct OrtModel(Arc<Lease>);

/// One graph of a model: `unet` of a model with the file `unet/model.onnx`. Clones are the same.
///
/// Of the calls that are made at the same time `WORKER_ORT_SESSIONS` run; the others wait, in the order in which they were
/// made, each with its inputs in memory.
#[derive(Clone)]
pub struct OrtSession {
    lease: Arc<Lease>,
    index: usize,
}

/// A model in memory, for one holder. The model goes before the lease: it may be evicted once that has ended.
pub(crate) struct Lease {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) cancellation: Cancellation,
    pub(crate) pin: Pin,
}

/// The graphs of a model in memory. Its files may go meanwhile: what the library has mapped of them stays until it is unmapped.
#[derive(Debug)]
pub(crate) struct Loaded {
    model: ModelRef,
    /// The sum of the sizes of its files.
    size_bytes: u64,
    provider: Provider,
    device: usize,
    sessions: Vec<LoadedGraph>,
    main: Option<usize>,
}

#[derive(Debug)]
struct LoadedGraph {
    name: String,
    graph: Graph,
    pool: SessionPool,
    kept: Option<Arc<Kept>>,
}

/// What the sessions of a model that was evicted come back from, by their names.
pub(crate) type KeptGraphs = HashMap<String, Arc<Kept>>;

impl Loaded {
    /// Loads every graph of a model onto a device. Blocks.
    pub(crate) fn open(
        recipe: &Recipe,
        local: &LocalModel,
        device: usize,
        mut kept: KeptGraphs,
    ) -> Result<Self, ModelError> {
        let Graphs { named, main } = files::graphs(local)?;
        let sessions = named
            .into_iter()
            .map(|(name, file)| {
                let mut opened = recipe.open(&local.model, &file, device, kept.remove(&name))?;
                warm_up(local, &name, &file, &mut opened, recipe.warm_up());
                let Opened { sessions, graph, kept } = opened;
                let pool = SessionPool::start(sessions, recipe.arenas(device), recipe.short_call())?;
                Ok(LoadedGraph { name, graph, pool, kept })
            })
            .collect::<Result<_, ModelError>>()?;
        let (model, size_bytes) = (local.model.clone(), local.size_bytes);
        Ok(Self { model, size_bytes, provider: recipe.provider(), device, sessions, main })
    }

    /// The sum of the sizes of its files.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Bytes of main memory that stay when it is evicted and kept warm.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.sessions.iter().flat_map(|session| &session.kept).map(|kept| kept.bytes).sum()
    }

    /// What it comes back from.
    pub(crate) fn kept(&self) -> KeptGraphs {
        let kept = |session: &LoadedGraph| Some((session.name.clone(), session.kept.clone()?));
        self.sessions.iter().filter_map(kept).collect()
    }

    /// The device that it is on.
    pub(crate) fn device(&self) -> usize {
        self.device
    }

    /// Has its sessions let go, with their next calls, of memory that calls do not use.
    pub(crate) fn shrink(&self) {
        self.sessions.iter().for_each(|session| session.pool.shrink());
    }

    /// The session of this name; without one, the main session.
    fn find(&self, name: Option<&str>) -> Result<usize, ModelError> {
        let found = match name {
            Some(name) => self.sessions.iter().position(|session| session.name == name),
            None => self.main,
        };
        found.ok_or_else(|| ModelError::Session {
            asked: name.unwrap_or("none").to_owned(),
            has: list(self.sessions.iter().map(|session| session.name.clone())),
        })
    }
}

/// With the example beside the graph, if there is one. A graph that cannot be warmed up is taken as it is: its first call will
/// say what is wrong.
fn warm_up(local: &LocalModel, name: &str, file: &Path, opened: &mut Opened, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    let Some(example) = warmup::example(local, file, &opened.graph) else { return };
    match warmup::warm_up(&mut opened.sessions, &opened.graph, example, limit) {
        Ok(sessions) => debug!(model = %local.model, graph = name, sessions, "model warmed up"),
        Err(error) => {
            let cause = error.source().map(ToString::to_string);
            warn!(model = %local.model, graph = name, %error, cause, "model not warmed up");
        }
    }
}

impl OrtModel {
    pub(crate) fn new(lease: Lease) -> Self {
        Self(Arc::new(lease))
    }

    /// The reference it came from.
    pub fn model_id(&self) -> &str {
        self.0.loaded.model.known_as()
    }

    /// How many calls of one of its sessions run at the same time: `WORKER_ORT_SESSIONS`. Never 0.
    pub fn calls_at_once(&self) -> usize {
        self.0.loaded.sessions.first().map_or(1, |session| session.pool.count())
    }

    /// The names of its sessions, in alphabetical order.
    pub fn sessions(&self) -> impl Iterator<Item = &str> {
        self.0.loaded.sessions.iter().map(|session| session.name.as_str())
    }

    /// The session of this name: the folder of its `model.onnx`, else the name of its file without `.onnx`.
    ///
    /// # Errors
    /// `validation`: the model has no such session; the error lists those it has.
    pub fn session(&self, name: &str) -> Result<OrtSession, WorkerError> {
        self.find(Some(name))
    }

    /// What the main session takes, in the graph's order; nothing when there is none.
    pub fn inputs(&self) -> &[TensorSpec] {
        self.main_graph().map_or(&[], |graph| &graph.inputs)
    }

    /// What the main session gives, in the graph's order; nothing when there is none.
    pub fn outputs(&self) -> &[TensorSpec] {
        self.main_graph().map_or(&[], |graph| &graph.outputs)
    }

    /// Runs the main session: `model.run([("x", array)]).await?`.
    ///
    /// # Errors
    /// As of [`OrtSession::run`]; and `validation`: the model has several sessions and no `model.onnx` of its own.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference, before it begins or between two of its steps.
    pub async fn run<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Outputs, WorkerError> {
        self.find(None)?.run(inputs).await
    }

    /// Like [`run`](Self::run), for blocking functions: as [`OrtSession::run_blocking`].
    ///
    /// # Errors
    /// As of `run`.
    pub fn run_blocking<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Outputs, WorkerError> {
        self.find(None)?.run_blocking(inputs)
    }

    /// Binds tensors to the main session, as [`OrtSession::bind`].
    ///
    /// # Errors
    /// As of `bind`; and `validation`: the model has several sessions and no `model.onnx` of its own.
    pub fn bind<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
        carried: &[(&str, &str)],
    ) -> Result<OrtBinding, WorkerError> {
        self.find(None)?.bind(inputs, carried)
    }

    fn find(&self, name: Option<&str>) -> Result<OrtSession, WorkerError> {
        let index = self.0.loaded.find(name).map_err(reported)?;
        Ok(OrtSession { lease: self.0.clone(), index })
    }

    fn main_graph(&self) -> Option<&Graph> {
        Some(&self.0.loaded.sessions[self.0.loaded.main?].graph)
    }
}

impl OrtSession {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.own().name
    }

    /// What it takes, in the graph's order.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.own().graph.inputs
    }

    /// What it gives, in the graph's order.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.own().graph.outputs
    }

    /// Runs the graph on a thread of its own: `session.run([("x", array)]).await?`; or within the future, if the last calls say that
    /// it takes no longer than `WORKER_ORT_SHORT_CALL_US`. When the run is told to stop, the inference ends before its next step. When memory runs out, what nobody leases is evicted and the call made once more.
    ///
    /// An owned array that lies row by row becomes the library's input as it is, without a copy, and is freed when the call is
    /// over. One that lies otherwise is copied into that order.
    ///
    /// # Errors
    /// `validation`: the inputs are not those of the graph. `resource`: memory ran out. `canceled`: the run was told to stop.
    /// `internal`: the graph failed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference, before it begins or between two of its steps.
    pub async fn run<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Outputs, WorkerError> {
        let (_, outputs) = self.call(self.values(inputs)?).await?;
        Ok(outputs)
    }

    /// Like [`run`](Self::run), for blocking functions: it blocks the thread, and the graph runs on it, which spares the way to
    /// another and back (5 to 10 µs). Needs no runtime.
    ///
    /// # Errors
    /// As of `run`.
    pub fn run_blocking<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Outputs, WorkerError> {
        self.call_blocking(&mut self.values(inputs)?)
    }

    /// Binds tensors to the session: they stay where the graph runs, on a card in its memory, from one call to the next. After each
    /// call an output of `carried` becomes the input that is named beside it, as in a loop of denoising:
    ///
    /// ```no_run
    /// # use gen_worker_core::WorkerError;
    /// # use gen_worker_models_ort::{OrtModel, Tensor, ndarray::{ArrayD, arr0}};
    /// # async fn doc(model: OrtModel, text: Tensor, noise: Tensor) -> Result<ArrayD<f32>, WorkerError> {
    /// let unet = model.session("unet")?;
    /// let inputs = [("text", text), ("latent", noise), ("step", arr0(0_i64).into())];
    /// let mut binding = unet.bind(inputs, &[("less_noise", "latent")])?;
    /// for step in 0..20 {
    ///     binding.set("step", arr0(step))?;
    ///     binding.run().await?;
    /// }
    /// binding.get::<f32>("less_noise")
    /// # }
    /// ```
    ///
    /// # Errors
    /// `validation`: the inputs are not those of the graph, an input or output is of texts, or one of `carried` is no output and
    /// input of one type.
    pub fn bind<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
        carried: &[(&str, &str)],
    ) -> Result<OrtBinding, WorkerError> {
        let inputs: Inputs = inputs.into_iter().map(|(name, tensor)| (name.into(), tensor.into())).collect();
        let loaded = &self.lease.loaded;
        OrtBinding::new(self.clone(), &self.own().graph, (loaded.provider, loaded.device), inputs, carried)
            .map_err(reported)
    }

    fn values<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Values, WorkerError> {
        let inputs: Inputs = inputs.into_iter().map(|(name, tensor)| (name.into(), tensor.into())).collect();
        let own = self.own();
        own.graph.check(&inputs).and_then(|()| session::values(inputs)).map_err(reported)
    }

    /// Does the work, and gives it back with what it gave.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference.
    pub(crate) async fn call<W: Work>(&self, work: W) -> Result<(W, W::Output), WorkerError> {
        let given = tokio::select! {
            biased;
            _ = self.lease.cancellation.canceled() => None,
            given = self.call_twice(work) => given,
        };
        self.unless_canceled(given)
    }

    /// `None`: it was told to stop.
    async fn call_twice<W: Work>(&self, work: W) -> Option<Result<(W, W::Output), ModelError>> {
        let (pool, pin, cancellation) = (&self.own().pool, &self.lease.pin, &self.lease.cancellation);
        let called = match pool.call(work, cancellation).await? {
            Ok((work, Err(ModelError::OutOfMemory { .. })))
                if timeout(pin.wait(), pin.make_room()).await.is_ok_and(|is_room| is_room) =>
            {
                pool.call(work, cancellation).await?
            }
            called => called,
        };
        Some(called.and_then(|(work, given)| Ok((work, given?))))
    }

    fn unless_canceled<T>(&self, given: Option<Result<T, ModelError>>) -> Result<T, WorkerError> {
        let reason = || self.lease.cancellation.reason().map_or("", |reason| reason.as_str());
        given.map_or_else(|| Err(WorkerError::canceled(reason())), |given| given.map_err(reported))
    }

    pub(crate) fn call_blocking<W: Work>(&self, work: &mut W) -> Result<W::Output, WorkerError> {
        self.unless_canceled(self.call_twice_blocking(work, &self.lease.cancellation))
    }

    /// `None`: it was told to stop.
    fn call_twice_blocking<W: Work>(
        &self,
        work: &mut W,
        cancellation: &Cancellation,
    ) -> Option<Result<W::Output, ModelError>> {
        let (pool, pin) = (&self.own().pool, &self.lease.pin);
        match pool.call_blocking(work, cancellation)? {
            Err(ModelError::OutOfMemory { source }) => {
                let is_room = block_on_for(pin.wait(), async {
                    tokio::select! {
                        biased;
                        _ = cancellation.canceled() => false,
                        is_room = pin.make_room() => is_room,
                    }
                });
                match is_room {
                    Some(true) => pool.call_blocking(work, cancellation),
                    _ => Some(Err(ModelError::OutOfMemory { source })),
                }
            }
            given => Some(given),
        }
    }

    fn own(&self) -> &LoadedGraph {
        &self.lease.loaded.sessions[self.index]
    }
}

impl Extract for OrtModel {
    const NEED: ModelNeed = ModelNeed::Resident;

    fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError> {
        Ok((*parts.lease::<Self>()?).clone())
    }
}

impl fmt::Debug for OrtModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrtModel({})", self.0.loaded.model)
    }
}

impl fmt::Debug for OrtSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrtSession({}, {})", self.lease.loaded.model, self.name())
    }
}

/// The error as functions pass it on with `?`: its kind and what the caller may read are settled here.
pub(crate) fn reported(error: ModelError) -> WorkerError {
    JobFailure::from(error).into()
}
