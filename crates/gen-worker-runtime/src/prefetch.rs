//! The models that a deployment names, fetched before a run asks for them, and the functions that wait for them.
//!
//! What is fetched, and when, is decided by `queue`; who waits for what, by `waiting`. A fetch that was begun is seen to its
//! end, also when a later configuration does not name its model: its events end as they should, and what it brought is on
//! disk when it is wanted again. A fetch that fails holds no function back: a run that needs the model tries again, and
//! reports why it cannot be had.

mod queue;
mod waiting;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gen_worker_core::{FailureKind, JobFailure, ModelBinding, ModelRef, ports::ModelSource};
use tokio::{runtime::Handle, sync::watch};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::{queue::Queue, waiting::Waiting};
use crate::{
    command::ModelConfig,
    outbox::Outbox,
    registry::Registry,
    shutdown::{Phase, Shutdown},
};

/// Fetches the deployment's models. Clones share the state.
#[derive(Clone)]
pub(crate) struct Prefetch(Arc<Shared>);

struct Shared {
    /// Each function with its keys of the deployment.
    functions: Vec<(String, Vec<&'static str>)>,
    /// `None`: nothing can be fetched, so nothing is waited for.
    source: Option<Arc<dyn ModelSource>>,
    outbox: Arc<Outbox>,
    users: Handle,
    tracker: TaskTracker,
    shutdown: Shutdown,
    state: Mutex<State>,
    /// Told when other functions wait than did.
    news: watch::Sender<()>,
}

struct State {
    queue: Queue,
    waiting: Waiting,
}

impl Prefetch {
    pub(crate) fn new(
        registry: &Registry,
        source: Option<Arc<dyn ModelSource>>,
        outbox: Arc<Outbox>,
        users: Handle,
        tracker: TaskTracker,
        shutdown: Shutdown,
        news: watch::Sender<()>,
    ) -> Self {
        let at_once = source.as_ref().map_or(1, |source| source.at_once());
        let state = State { queue: Queue::new(at_once), waiting: Waiting::default() };
        let (functions, state) = (keys(registry), Mutex::new(state));
        Self(Arc::new(Shared { functions, source, outbox, users, tracker, shutdown, state, news }))
    }

    /// Fetches what this configuration names, in the place of what the one before named and is not begun yet.
    pub(crate) fn take_up(&self, config: &ModelConfig) {
        let Some(source) = &self.0.source else { return };
        let plan = planned(config);
        // What is there can be used at once; it is asked for all the same, because its tag may lead elsewhere by now.
        let there: HashSet<_> = source.on_disk().iter().filter_map(|id| ModelRef::parse(id).ok()).collect();
        let missing = plan.iter().filter(|model| !there.contains(model)).cloned().collect();
        let waiting = Waiting::new(config, &self.0.functions, &missing);
        let loading = waiting.names();
        info!(
            models = plan.len(),
            missing = missing.len(),
            loading = loading.join(","),
            "the deployment's models"
        );
        let before = {
            let mut state = self.state();
            state.queue.replace(plan);
            std::mem::replace(&mut state.waiting, waiting)
        };
        if before.names() != loading {
            self.0.news.send_replace(());
        }
        self.begin();
    }

    /// Nobody waits for the model any more: it is on disk, whoever brought it, or cannot be had.
    pub(crate) fn settle(&self, model: &ModelRef) {
        let ready = self.state().waiting.settle(model);
        if !ready.is_empty() {
            info!(functions = ready.join(","), "functions wait for no model any more");
            self.0.news.send_replace(());
        }
    }

    /// The models that are being fetched ahead.
    pub(crate) fn under_way(&self) -> Vec<String> {
        self.state().queue.under_way().map(|model| model.known_as().to_owned()).collect()
    }

    /// The functions some of whose models are on their way.
    pub(crate) fn loading(&self) -> Vec<String> {
        self.state().waiting.names()
    }

    /// Changes when [`loading`](Self::loading) may have.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.news.subscribe()
    }

    /// Begins as many fetches as may go on at once; none in a worker that leaves.
    fn begin(&self) {
        let next = || self.state().queue.begin();
        while self.is_running()
            && let Some(model) = next()
        {
            self.0.tracker.spawn_on(self.clone().fetch(model), &self.0.users);
        }
    }

    /// Sees one fetch to its end; a worker that leaves does not wait for it.
    async fn fetch(self, model: ModelRef) {
        let begun = Begun { prefetch: &self, model: &model };
        let Some(source) = &self.0.source else { return };
        let fetched = tokio::select! {
            biased;
            () = self.0.shutdown.reached(Phase::Draining) => return,
            fetched = source.ensure(&model, self.0.outbox.clone()) => fetched,
        };
        if let Err(failure) = fetched {
            self.tell(&model, &failure);
        }
        drop(begun);
    }

    fn tell(&self, model: &ModelRef, failure: &JobFailure) {
        // Asked for before the line is written: whoever writes it may be slow, and the lock is not held meanwhile.
        let functions = self.state().waiting.of(model).join(",");
        warn!(
            model = model.known_as(),
            functions,
            kind = failure.kind.as_str(),
            error = failure.chain(),
            remedy = remedy(failure.kind),
            "a model could not be fetched ahead; a run that needs it tries again",
        );
    }

    fn ended(&self, model: &ModelRef) {
        self.state().queue.end(model);
        self.settle(model);
        self.begin();
    }

    fn is_running(&self) -> bool {
        self.0.shutdown.phase() == Phase::Running
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fetch under way. It ends when this is dropped, also by a panic: no function may wait for what nobody fetches.
struct Begun<'a> {
    prefetch: &'a Prefetch,
    model: &'a ModelRef,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        // A worker that leaves has stopped it: the model is not there, and nothing follows.
        if self.prefetch.is_running() {
            self.prefetch.ended(self.model);
        }
    }
}

/// Each function with its keys of the deployment. Which model a payload names is known with the run.
fn keys(registry: &Registry) -> Vec<(String, Vec<&'static str>)> {
    let key = |binding| match binding {
        ModelBinding::Deployment(key) => Some(key),
        ModelBinding::Payload(_) => None,
    };
    let of = registry.iter().map(|function| {
        let injections = function.spec().injections.iter();
        let keys = injections.filter_map(|injection| key(injection.binding)).collect();
        (function.spec().name.to_string(), keys)
    });
    of.collect()
}

/// The plan, without what cannot be understood, which is said.
fn planned(config: &ModelConfig) -> Vec<ModelRef> {
    let (plan, unusable) = queue::plan(config);
    for problem in unusable {
        warn!(%problem, "the deployment names a model that cannot be fetched ahead");
    }
    plan
}

/// What whoever reads the log can do.
fn remedy(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Auth => {
            "look at the credential of its source, COZY_HUB_TOKEN or HF_TOKEN, or the file it lies in"
        }
        FailureKind::Resource => {
            "free disk space below WORKER_MODEL_CACHE_DIR, or raise WORKER_LOCAL_CACHE_GB"
        }
        FailureKind::Validation => {
            "correct the reference, in the deployment's configuration or in `[models]` of cozy.toml"
        }
        FailureKind::Retryable | FailureKind::Timeout => "none is needed if its source comes back",
        _ => "see the error",
    }
}
