//! `dev`: an orchestrator and this worker in one process, on this machine only.

mod once;
mod show;

use std::{path::PathBuf, thread};

use gen_worker_core::{
    Function,
    config::{ConfigErrors, Env},
};
use gen_worker_orchestrator::{ClientError, Orchestrator, OrchestratorConfig, OrchestratorError};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};
use url::Url;

use self::once::Once;
use crate::{
    app::{AppError, project, worker},
    logging,
};

/// Why `dev` ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Orchestrator(#[from] OrchestratorError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the run failed: {message}")]
    Run { message: String },
    #[error("interrupted")]
    Interrupted,
    #[error("cannot start a thread")]
    Threads(#[from] std::io::Error),
}

impl DevError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            // As shells report a process that SIGINT ended.
            Self::Interrupted => 130,
            Self::Orchestrator(_) | Self::Client(_) | Self::Run { .. } | Self::Threads(_) => 1,
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct DevArguments {
    /// Folder of models that the worker finds at its hub
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// Folder for stored files and fetched models
    #[arg(long, default_value = ".gen-worker")]
    data: PathBuf,
    #[command(flatten)]
    once: Once,
}

pub(crate) fn run(functions: Vec<Function>, arguments: DevArguments) -> Result<(), AppError> {
    let mut project = project()?;
    let job = arguments.once.read(&functions)?;
    logging::start(&project.env, if job.is_some() { "warn" } else { "info" });
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("orchestrator")
        .enable_all()
        .build()
        .map_err(DevError::Threads)?;
    let config = orchestrator_config(&project.env, &arguments, job.is_some())?;
    let orchestrator = runtime.block_on(Orchestrator::start(config)).map_err(DevError::Orchestrator)?;
    point_worker_at(&mut project.env, &orchestrator, &arguments);
    let worker = worker(functions, project)?;
    let (base, shutdown) = (orchestrator.base_url().clone(), worker.shutdown());
    let (alive, ended) = oneshot::channel::<()>();
    let work = move || {
        let _alive = alive;
        worker.run()
    };
    let working = thread::Builder::new().name("control".to_owned()).spawn(work).map_err(DevError::Threads)?;
    let done = match &job {
        Some(job) => runtime.block_on(async {
            tokio::select! {
                done = job.run(base) => done,
                _ = ended => Err(DevError::Interrupted),
            }
        }),
        None => {
            announce(&base);
            // Until Ctrl-C: the channel closes when the worker has left.
            let _ = ended.blocking_recv();
            Ok(())
        }
    };
    shutdown.drain();
    let worked = working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    stop(runtime, orchestrator);
    worked?;
    Ok(done?)
}

/// A single run takes any free ports, so that it never meets another orchestrator.
fn orchestrator_config(
    env: &Env,
    arguments: &DevArguments,
    once: bool,
) -> Result<OrchestratorConfig, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let config = match once {
        true => OrchestratorConfig::local(&arguments.data),
        false => OrchestratorConfig::from_env(env, &mut errors),
    };
    let models_dir = Some(arguments.models.clone()).filter(|folder| folder.is_dir());
    errors.into_result(OrchestratorConfig { data_dir: arguments.data.clone(), models_dir, ..config })
}

fn point_worker_at(env: &mut Env, orchestrator: &Orchestrator, arguments: &DevArguments) {
    let base = orchestrator.base_url().as_str().trim_end_matches('/').to_owned();
    let data = |folder: &str| arguments.data.join(folder).to_string_lossy().into_owned();
    env.set("SCHEDULER_ADDR", &format!("grpc://{}", orchestrator.grpc_addr()));
    env.set("SCHEDULER_ADDRS", "");
    env.set("COZY_HUB_URL", &format!("{base}/hub"));
    env.set("FILE_API_BASE_URL", &base);
    // Presigned URLs in payloads point at the orchestrator, which is on loopback.
    env.set("WORKER_URL_ALLOW", &orchestrator.http_addr().to_string());
    env.set_default("WORKER_MODEL_CACHE_DIR", &data("models"));
    env.set_default("WORKER_RUN_DIR", &data("runs"));
}

fn stop(runtime: Runtime, orchestrator: Orchestrator) {
    runtime.block_on(orchestrator.stop());
    runtime.shutdown_background();
}

#[expect(clippy::print_stderr, reason = "said to whoever started it")]
fn announce(base: &Url) {
    eprintln!("send runs to {base}v1/runs; Ctrl-C to leave");
}
