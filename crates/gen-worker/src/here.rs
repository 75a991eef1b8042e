//! An orchestrator and this worker in one process, on this machine only.

use std::{
    ffi::OsString,
    io,
    net::SocketAddr,
    path::PathBuf,
    thread::{self, JoinHandle},
};

use gen_worker_core::{Secret, config::Env};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig, OrchestratorError};
use gen_worker_runtime::{Shutdown, Worker, WorkerFailure};
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
};
use url::Url;

use crate::{
    app::AppError,
    call::{CallError, next_signal},
    config::Project,
};

/// Why the two cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HereError {
    #[error(transparent)]
    Orchestrator(#[from] OrchestratorError),
    #[error("cannot start a thread")]
    Threads(#[source] io::Error),
    #[error("listening for signals failed")]
    Signals(#[source] io::Error),
    #[error("the worker's own binary cannot be found")]
    Binary(#[source] io::Error),
    #[error("the worker cannot be kept")]
    Worker(#[source] io::Error),
}

#[derive(clap::Args)]
pub(crate) struct Folders {
    /// Folder of models that the worker finds at its hub
    #[arg(long, value_name = "FOLDER", default_value = "models")]
    models: PathBuf,
    /// Folder for stored files and fetched models
    #[arg(long, value_name = "FOLDER", default_value = ".gen-worker")]
    data: PathBuf,
}

impl Folders {
    /// An orchestrator that has them.
    pub(crate) fn serve(&self, config: OrchestratorConfig) -> OrchestratorConfig {
        let models_dir = Some(self.models.clone()).filter(|folder| folder.is_dir());
        OrchestratorConfig { data_dir: self.data.clone(), models_dir, ..config }
    }

    /// The words that say the same to another process.
    pub(crate) fn arguments(&self) -> [OsString; 4] {
        ["--models".into(), self.models.clone().into(), "--data".into(), self.data.clone().into()]
    }
}

/// What the orchestrator's work is done on.
pub(crate) fn runtime() -> Result<Runtime, HereError> {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).thread_name("orchestrator").enable_all().build().map_err(HereError::Threads)
}

/// What a worker of its own shows the orchestrator, where it asks for something.
pub(crate) fn token(config: &OrchestratorConfig) -> Option<Secret<String>> {
    config.worker_token.clone().or_else(|| config.api_token.clone())
}

/// Both of them, running.
pub(crate) struct Here {
    runtime: Runtime,
    orchestrator: Orchestrator,
    shutdown: Shutdown,
    working: JoinHandle<Result<(), WorkerFailure>>,
    /// Closed when the worker has ended.
    alive: watch::Receiver<()>,
}

impl Here {
    /// Starts the orchestrator, then the worker that `make` makes of the project, whose settings point at it.
    pub(crate) fn start(
        config: OrchestratorConfig,
        folders: &Folders,
        mut project: Project,
        make: impl FnOnce(Project) -> Result<Worker, AppError>,
    ) -> Result<Self, AppError> {
        let runtime = runtime()?;
        let config = folders.serve(config);
        let token = token(&config);
        let orchestrator = runtime.block_on(Orchestrator::start(config)).map_err(HereError::Orchestrator)?;
        Nearby::of(&orchestrator).point(&mut project.env, token.as_ref(), folders);
        let worker = make(project)?;
        let shutdown = worker.shutdown();
        let (lives, alive) = watch::channel(());
        let work = move || {
            let _lives = lives;
            worker.run()
        };
        let working =
            thread::Builder::new().name("control".to_owned()).spawn(work).map_err(HereError::Threads)?;
        Ok(Self { runtime, orchestrator, shutdown, working, alive })
    }

    /// Where calls go.
    pub(crate) fn base_url(&self) -> &Url {
        self.orchestrator.base_url()
    }

    /// Drives `work`; `None`: the worker ended before it did.
    pub(crate) fn unless_ended<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let alive = &mut self.alive;
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                done = work => Some(done),
                // Nothing is ever sent.
                _ = alive.changed() => None,
            }
        })
    }

    /// Sees both off. What still runs is told to stop and has its grace, and tear-downs have their time, unless a signal says
    /// that nobody waits for them.
    pub(crate) fn leave(mut self) -> Result<(), AppError> {
        self.shutdown.cancel();
        if self.unless_ended(next_signal()).is_some() {
            self.abandon();
            return Err(CallError::Interrupted.into());
        }
        let worked = self.working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        self.runtime.block_on(self.orchestrator.stop());
        self.runtime.shutdown_background();
        Ok(worked?)
    }

    /// Waits for neither of them.
    pub(crate) fn abandon(self) {
        self.runtime.shutdown_background();
    }
}

/// An orchestrator on this machine, as a worker beside it is told of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Nearby {
    /// Where it takes workers
    #[arg(long)]
    grpc: SocketAddr,
    /// Where it serves HTTP
    #[arg(long)]
    http: SocketAddr,
    /// How others reach that
    #[arg(long)]
    base: Url,
}

impl Nearby {
    pub(crate) fn of(orchestrator: &Orchestrator) -> Self {
        let base = orchestrator.base_url().clone();
        Self { grpc: orchestrator.grpc_addr(), http: orchestrator.http_addr(), base }
    }

    /// The words that say the same to another process.
    pub(crate) fn arguments(&self) -> [String; 6] {
        let Self { grpc, http, base } = self;
        [
            "--grpc".to_owned(),
            grpc.to_string(),
            "--http".to_owned(),
            http.to_string(),
            "--base".to_owned(),
            base.to_string(),
        ]
    }

    /// Turns a worker to it. `token`: what it asks of workers.
    pub(crate) fn point(&self, env: &mut Env, token: Option<&Secret<String>>, folders: &Folders) {
        let base = self.base.as_str().trim_end_matches('/');
        let data = |folder: &str| folders.data.join(folder).to_string_lossy().into_owned();
        DEPLOYED.iter().for_each(|name| env.set(name, ""));
        env.set("SCHEDULER_ADDR", &format!("grpc://{}", self.grpc));
        env.set("COZY_HUB_URL", &format!("{base}/hub"));
        env.set("FILE_API_BASE_URL", base);
        // Presigned URLs in payloads point at the orchestrator, which is on loopback.
        env.set("WORKER_URL_ALLOW", &self.http.to_string());
        if let Some(token) = token {
            env.set("AUTH_TOKEN", token.expose());
            env.set("COZY_HUB_TOKEN", token.expose());
        }
        env.set_default("WORKER_MODEL_CACHE_DIR", &data("models"));
        env.set_default("WORKER_RUN_DIR", &data("runs"));
    }
}

/// What a deployed worker is told of its peers and of who watches it. A worker that works here has others: it neither shows
/// them these credentials, nor says of itself what concerns that one, nor delivers what that one left undelivered.
const DEPLOYED: [&str; 21] = [
    "SCHEDULER_ADDRS",
    "SCHEDULER_TLS_CA",
    "SCHEDULER_TLS_CERT",
    "SCHEDULER_TLS_KEY",
    "AUTH_TOKEN",
    "WORKER_JWT",
    "WORKER_JWT_FILE",
    "SCHEDULER_JWKS_URL",
    "ORCHESTRATOR_HTTP_URL",
    "FILE_API_TOKEN",
    "COZY_HUB_API",
    "COZY_HUB_TOKEN",
    "COZY_HUB_TOKEN_FILE",
    "WORKER_STATE_DIR",
    "WORKER_HTTP_ADDR",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
];
