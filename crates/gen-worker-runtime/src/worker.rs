//! The worker: two runtimes, the parts between them, and the way out.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use gen_worker_core::{
    CancelReason, Extensions, Function, ModelRef, SetUp, TearDown,
    layer::{Answer, BoxError, Handler, Invocation, Layer, Service},
    ports::Observer,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    admission::{Admission, Limits},
    command::ModelConfig,
    config::RuntimeConfig,
    connection::{Connection, ConnectionError, Link},
    credential::Keeper,
    dispatch::Dispatcher,
    fitness::Unfit,
    heartbeat::{Reporter, Waits},
    hooks::{HookError, Hooks, Prepared, SetUpFailure, Way},
    host::Host,
    job::{Jobs, ModelTable, Workshop},
    journal::JournalError,
    meters::Meters,
    model_control::ModelControl,
    outbox::Outbox,
    ports::Ports,
    prefetch::Prefetch,
    registry::{Registry, RegistryError},
    report::{Reports, Surroundings},
    shutdown::{Phase, Shutdown},
    snapshot::when_asked,
    vitals::{self, Pulse, Watched},
};

/// How long a worker that leaves may take to hand over what it still holds.
const FLUSH: Duration = Duration::from_secs(10);

/// Why a worker cannot start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerFailure {
    /// The functions cannot be served.
    #[error(transparent)]
    Functions(#[from] RegistryError),
    /// What is done before the first run and after the last does not fit together, or not the functions.
    #[error(transparent)]
    Hooks(#[from] HookError),
    /// A set-up failed.
    #[error(transparent)]
    SetUp(SetUpFailure),
    /// The operating system gave no threads.
    #[error("cannot start the worker's threads")]
    Threads(#[source] std::io::Error),
    /// `WORKER_STATE_DIR` cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Dialling again cannot help.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// It was told to leave, and no scheduler took the results it holds.
    #[error("left with results that no scheduler took within {waited:?}")]
    Unsaid {
        /// How long it tried.
        waited: Duration,
    },
    /// More than `WORKER_MAX_ZOMBIES` functions go on after they were told to stop.
    #[error("{count} functions do not stop when they are told to: only the end of the process ends them")]
    Zombies {
        /// How many.
        count: u32,
    },
}

/// A worker in the making.
#[must_use = "a worker exists once `build` was called"]
pub struct WorkerBuilder {
    config: RuntimeConfig,
    ports: Ports,
    functions: Vec<Function>,
    models: Vec<(String, ModelRef)>,
    fetch_ahead: bool,
    extensions: Extensions,
    hooks: Hooks,
    layers: Vec<Box<dyn FnOnce(Handler) -> Handler + Send>>,
    signals: Signals,
}

/// Who tells a worker to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signals {
    Heed,
    Ignore,
}

impl WorkerBuilder {
    /// Adds a function.
    pub fn function(mut self, function: Function) -> Self {
        self.functions.push(function);
        self
    }

    /// Adds functions.
    pub fn functions(mut self, functions: impl IntoIterator<Item = Function>) -> Self {
        self.functions.extend(functions);
        self
    }

    /// Names the deployment's models by key. They are fetched from the start on, in this order, and runs may use no others,
    /// until the scheduler configures the deployment. None: nothing is fetched ahead, and runs may use any.
    pub fn models(mut self, models: impl IntoIterator<Item = (String, ModelRef)>) -> Self {
        self.models.extend(models);
        self
    }

    /// Whether the deployment's models are fetched before a run needs them: by default they are.
    pub fn fetch_ahead(mut self, ahead: bool) -> Self {
        self.fetch_ahead = ahead;
        self
    }

    /// Connects the worker to the outside world.
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = ports;
        self
    }

    /// Gives a value to every function that takes it as `State<T>`.
    pub fn state<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.extensions.insert(value);
        self
    }

    /// Adds what is done before the first run: what it makes is given to every function that takes it as `State<T>`. Set-ups
    /// run at the same time, while the worker connects; functions are advertised as loading until all are done. If one fails,
    /// or they take longer than `WORKER_SETUP_TIMEOUT_SECONDS`, the worker ends.
    pub fn set_up(mut self, set_up: SetUp) -> Self {
        self.hooks.set_ups.push(set_up);
        self
    }

    /// Adds what is done after the last run, however the worker ends. Tear-downs run at the same time, when the last result
    /// was handed over, for `WORKER_TEARDOWN_TIMEOUT_SECONDS` at most; one that fails costs a line in the log.
    pub fn tear_down(mut self, tear_down: TearDown) -> Self {
        self.hooks.tear_downs.push(tear_down);
        self
    }

    /// Puts a [layer](gen_worker_core::layer) around every call of a function and every realtime session. The first that is added
    /// is the outermost: it sees a call first, and its answer last. Without layers a call costs no more.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Handler> + Send + 'static,
        L::Service: Service<Invocation, Response = Answer> + Clone + Send + Sync + 'static,
        <L::Service as Service<Invocation>>::Error: Into<BoxError>,
        <L::Service as Service<Invocation>>::Future: Send + 'static,
    {
        self.layers.push(Box::new(move |inner| inner.within(&layer)));
        self
    }

    /// Leaves on SIGTERM and SIGINT: the first drains, a second cancels; SIGUSR1 writes a snapshot to the log. Without this only
    /// [`Worker::shutdown`] ends it.
    pub fn stop_on_signals(mut self) -> Self {
        self.signals = Signals::Heed;
        self
    }

    /// The worker.
    ///
    /// # Errors
    /// There is no function, or two have one name; or something takes a `State<T>` that nothing makes, or two set-ups make the
    /// same; or the operating system gives no threads.
    pub fn build(self) -> Result<Worker, WorkerFailure> {
        let registry = Registry::new(self.functions)?;
        self.hooks.check(&self.extensions)?;
        for spec in registry.iter().map(Function::spec) {
            if let Some(state) = spec.states.iter().find(|state| !self.hooks.makes(&self.extensions, **state))
            {
                return Err(HookError::NotMade { taker: spec.name.to_string(), state: *state }.into());
            }
        }
        let users = Builder::new_multi_thread()
            .thread_name("user")
            .enable_all()
            .build()
            .map_err(WorkerFailure::Threads)?;
        Ok(Worker {
            ports: self.ports,
            registry,
            models: self.models,
            fetch_ahead: self.fetch_ahead,
            prepared: Prepared::new(self.extensions, self.hooks.set_ups.is_empty()),
            hooks: self.hooks,
            layers: {
                // Some layers start a task where they are made.
                let _users = users.enter();
                layered(self.layers)
            },
            shutdown: Shutdown::new(self.config.drain_timeout),
            config: Arc::new(self.config),
            signals: self.signals,
            users,
        })
    }
}

/// Takes runs from a scheduler until it is told to leave.
///
/// It has two runtimes. The one that [`run`](Self::run) blocks on is for control: the stream, admission, heartbeats,
/// deadlines. User code runs on the other, so that no user code, however it spins, delays a heartbeat or a cancel.
pub struct Worker {
    config: Arc<RuntimeConfig>,
    ports: Ports,
    registry: Registry,
    models: Vec<(String, ModelRef)>,
    fetch_ahead: bool,
    prepared: Prepared,
    hooks: Hooks,
    layers: Option<Handler>,
    shutdown: Shutdown,
    signals: Signals,
    users: Runtime,
}

impl Worker {
    /// Starts a worker with these settings.
    pub fn builder(config: RuntimeConfig) -> WorkerBuilder {
        WorkerBuilder {
            config,
            ports: Ports::default(),
            functions: Vec::new(),
            models: Vec::new(),
            fetch_ahead: true,
            extensions: Extensions::default(),
            hooks: Hooks::default(),
            layers: Vec::new(),
            signals: Signals::Ignore,
        }
    }

    /// Tells this worker to leave; may be called from any thread, also before `run`.
    pub fn shutdown(&self) -> Shutdown {
        self.shutdown.clone()
    }

    /// Works until told to leave. Blocks the calling thread, which becomes the control thread.
    ///
    /// # Errors
    /// `WORKER_STATE_DIR` cannot be used, the operating system gives no threads, a set-up failed, dialling again cannot help,
    /// something was left unsaid, or too many functions did not stop.
    ///
    /// # Panics
    /// It was called from async code.
    pub fn run(self) -> Result<(), WorkerFailure> {
        let control = Builder::new_current_thread().enable_all().build().map_err(WorkerFailure::Threads)?;
        let Self {
            config,
            ports,
            registry,
            models,
            fetch_ahead,
            prepared,
            hooks,
            layers,
            shutdown,
            signals,
            users,
        } = self;
        let told = shutdown.clone();
        let (outbox, outputs) = (Outbox::open(&config)?, ports.outputs.clone());
        let tracer = ports.tracer.clone();
        let parts = Parts::assemble(
            config,
            ports,
            registry,
            (prepared, layers),
            shutdown,
            Runtimes { users: users.handle().clone(), control: control.handle().clone() },
            outbox.clone(),
        );
        let watched = parts.watched.clone();
        let ended = control.block_on(async {
            tokio::select! {
                ended = parts.run(&models, fetch_ahead, hooks) => ended,
                never = heed(signals, &told, &watched) => match never {},
            }
        });
        // Threads that ignore their cancel would be waited for otherwise; what they were doing has been reported.
        users.shutdown_background();
        outbox.close();
        outputs.settle();
        if let Some(tracer) = tracer {
            tracer.settle();
        }
        // Nor is a thread that looks up a name or reads a file which hangs.
        control.shutdown_background();
        ended
    }
}

/// The layers around the function, the last that was added next to it; `None`: there are none.
fn layered(layers: Vec<Box<dyn FnOnce(Handler) -> Handler + Send>>) -> Option<Handler> {
    let mut layers = layers.into_iter().rev();
    let last = layers.next()?;
    Some(layers.fold(last(Handler::innermost()), |inner, layer| layer(inner)))
}

async fn heed(signals: Signals, shutdown: &Shutdown, watched: &Watched) -> Infallible {
    if signals == Signals::Heed {
        tokio::join!(shutdown.heed_signals(), when_asked(watched));
    }
    pending().await
}

/// Where user code runs, and where it is seen to.
struct Runtimes {
    users: Handle,
    control: Handle,
}

/// The parts of a running worker, on the control runtime.
struct Parts {
    config: Arc<RuntimeConfig>,
    connection: Connection,
    dispatcher: Arc<Dispatcher>,
    keeper: Keeper,
    admission: Admission,
    outbox: Arc<Outbox>,
    tracker: TaskTracker,
    shutdown: Shutdown,
    prepared: Prepared,
    users: Handle,
    /// Tells that other functions are ready than were.
    news: watch::Sender<()>,
    observing: CancellationToken,
    observer: Option<Arc<dyn Observer>>,
    watched: Arc<Watched>,
}

impl Parts {
    fn assemble(
        config: Arc<RuntimeConfig>,
        ports: Ports,
        registry: Registry,
        (prepared, layers): (Prepared, Option<Handler>),
        shutdown: Shutdown,
        Runtimes { users, control }: Runtimes,
        outbox: Arc<Outbox>,
    ) -> Self {
        if let Some(manager) = &ports.model_manager {
            manager.report_to(outbox.clone());
        }
        let (observing, tracker) = (CancellationToken::new(), TaskTracker::new());
        let host = Host::observe(config.fake_gpu.as_ref(), &config.visible_gpus, observing.clone());
        let meters = Arc::new(Meters::new(&registry));
        let limits = Limits { max_input: config.max_input, max_concurrency: config.max_concurrency };
        let admission = Admission::new(limits, ports.credential.clone(), shutdown.clone());
        let places = host.facts().gpu.count.max(1) * config.gpu_concurrency.get();
        let news = watch::Sender::new(());
        let prefetch = Prefetch::new(
            &registry,
            ports.model_source.clone(),
            outbox.clone(),
            users.clone(),
            tracker.clone(),
            shutdown.clone(),
            news.clone(),
        );
        let models_run_on = ports.model_manager.as_ref().map(|manager| manager.device());
        let specs = registry.iter().map(|function| &**function.spec());
        let unfit = Unfit::find(specs, &host.facts().gpu, models_run_on);
        unfit.tell(&*outbox);
        let reports = Reports::new(Surroundings {
            config: config.clone(),
            host: host.clone(),
            models: ports.model_manager.clone(),
        });
        let reporter = Reporter::new(
            config.clone(),
            &registry,
            admission.clone(),
            host,
            ports.clone(),
            Waits { prepared: prepared.clone(), prefetch: prefetch.clone() },
            &unfit,
        );
        let models = ModelControl {
            ports: ports.clone(),
            prefetch: prefetch.clone(),
            outbox: outbox.clone(),
            users: users.clone(),
            tracker: tracker.clone(),
        };
        let (credential, observer) = (ports.credential.clone(), ports.observer.clone());
        let keeper = Keeper::new(credential.clone());
        let jobs = Jobs::new(Workshop {
            config: config.clone(),
            registry,
            unfit,
            admission: admission.clone(),
            outbox: outbox.clone(),
            ports,
            prepared: prepared.clone(),
            layers,
            models: ModelTable::default(),
            prefetch: prefetch.clone(),
            gpu: Arc::new(Semaphore::new(places as usize)),
            gpu_runs: reporter.gpu_runs(),
            users: users.clone(),
            control,
            tracker: tracker.clone(),
            meters: meters.clone(),
            reports: reports.map(Arc::new),
            lines: Default::default(),
        });
        let dispatcher =
            Arc::new(Dispatcher::new(jobs, models, prefetch.clone(), keeper.clone(), shutdown.clone()));
        let reporter = Arc::new(reporter);
        let watched = Watched {
            prefetch,
            shutdown: shutdown.clone(),
            meters: meters.clone(),
            reporter: reporter.clone(),
            admission: admission.clone(),
            outbox: outbox.clone(),
            gpu_runs: reporter.gpu_runs(),
            result_retention: config.result_retention,
            tasks: tracker.clone(),
            pulse: Pulse::default(),
        };
        let link = Link {
            outbox: outbox.clone(),
            reporter,
            dispatcher: dispatcher.clone(),
            credential,
            shutdown: shutdown.clone(),
            meters,
        };
        Self {
            connection: Connection::new(config.clone(), link),
            dispatcher,
            keeper,
            config,
            admission,
            outbox,
            tracker,
            shutdown,
            prepared,
            users,
            news,
            observing,
            observer,
            watched: Arc::new(watched),
        }
    }

    async fn run(
        self,
        models: &[(String, ModelRef)],
        fetch_ahead: bool,
        hooks: Hooks,
    ) -> Result<(), WorkerFailure> {
        let Self {
            config,
            connection,
            dispatcher,
            keeper,
            admission,
            outbox,
            tracker,
            shutdown,
            prepared,
            users,
            news,
            observing,
            observer,
            watched,
        } = self;
        if !models.is_empty() {
            dispatcher.configure(ModelConfig::of(models), fetch_ahead);
        }
        let way = Way { users: &users, shutdown: &shutdown, news: &news };
        let set_up = async {
            prepared.set_up(hooks.set_ups, config.setup_timeout, way).await;
            pending::<Infallible>().await
        };
        let connection = connection.run();
        tokio::pin!(connection);
        let working = async {
            let ended = tokio::select! {
                ended = &mut connection => ended,
                never = keeper.keep() => match never {},
                never = admission.enforce_deadlines() => match never {},
                never = set_up => match never {},
                () = leave(&config, &admission, &tracker, &shutdown) => {
                    timeout(FLUSH, connection).await.unwrap_or(Ok(()))
                }
            };
            prepared.tear_down(hooks.tear_downs, config.teardown_timeout, &users).await;
            ended
        };
        let ended = tokio::select! {
            ended = working => ended,
            // To the very end: a watchdog waits for a worker that leaves too.
            never = vitals::watch(observer, watched) => match never {},
            never = outbox.tell_late() => match never {},
        };
        observing.cancel();
        if let Some(failure) = prepared.failure() {
            return Err(WorkerFailure::SetUp(failure));
        }
        ended?;
        if !outbox.can_leave() {
            return Err(WorkerFailure::Unsaid { waited: FLUSH });
        }
        match admission.overrun_by() {
            Some(count) => Err(WorkerFailure::Zombies { count }),
            None => Ok(()),
        }
    }
}

/// From the first signal until everything that ran has ended or was given up.
async fn leave(config: &RuntimeConfig, admission: &Admission, tracker: &TaskTracker, shutdown: &Shutdown) {
    shutdown.reached(Phase::Draining).await;
    tracker.close();
    info!(runs = admission.active().len(), "draining");
    tokio::select! {
        () = tracker.wait() => {}
        () = shutdown.time_is_up() => {}
        () = shutdown.reached(Phase::Canceling) => {}
    }
    shutdown.advance(Phase::Canceling);
    admission.cancel_all(CancelReason::Drain);
    // A run is given up after a grace, and what is left of it counted after another; model commands nothing else bounds.
    if timeout(config.cancel_grace * 2 + Duration::from_secs(1), tracker.wait()).await.is_err() {
        warn!("some work did not end in time");
    }
    shutdown.advance(Phase::Flushing);
}
