//! An orchestrator and this worker in one process, on this machine only.

use std::{
    path::PathBuf,
    thread::{self, JoinHandle},
};

use gen_worker_core::config::Env;
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
    Threads(#[from] std::io::Error),
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
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("orchestrator")
            .enable_all()
            .build()
            .map_err(HereError::Threads)?;
        let models_dir = Some(folders.models.clone()).filter(|folder| folder.is_dir());
        let config = OrchestratorConfig { data_dir: folders.data.clone(), models_dir, ..config };
        let orchestrator = runtime.block_on(Orchestrator::start(config)).map_err(HereError::Orchestrator)?;
        point_worker_at(&mut project.env, &orchestrator, folders);
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

fn point_worker_at(env: &mut Env, orchestrator: &Orchestrator, folders: &Folders) {
    let base = orchestrator.base_url().as_str().trim_end_matches('/').to_owned();
    let data = |folder: &str| folders.data.join(folder).to_string_lossy().into_owned();
    env.set("SCHEDULER_ADDR", &format!("grpc://{}", orchestrator.grpc_addr()));
    env.set("SCHEDULER_ADDRS", "");
    // What a worker of production left undelivered there is not for this orchestrator, nor is its service manager.
    env.set("WORKER_STATE_DIR", "");
    env.set("NOTIFY_SOCKET", "");
    env.set("COZY_HUB_URL", &format!("{base}/hub"));
    env.set("FILE_API_BASE_URL", &base);
    // Presigned URLs in payloads point at the orchestrator, which is on loopback.
    env.set("WORKER_URL_ALLOW", &orchestrator.http_addr().to_string());
    env.set_default("WORKER_MODEL_CACHE_DIR", &data("models"));
    env.set_default("WORKER_RUN_DIR", &data("runs"));
}
