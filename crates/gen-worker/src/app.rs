//! What a worker binary does: its verbs and its exit codes.

use std::{error::Error, path::Path, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand};
use gen_worker_core::{Function, config::ConfigErrors};
use gen_worker_runtime::{ConnectionError, Worker, WorkerFailure};

use crate::{
    assemble::{AssembleError, assemble},
    config::{Project, WorkerConfig},
    isolation::{IsolationError, hide_credentials},
    logging,
};

/// What ended the process badly, and the code it leaves behind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("the settings have mistakes:\n{0}")]
    Config(#[from] ConfigErrors),
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error(transparent)]
    Worker(#[from] WorkerFailure),
    #[cfg(feature = "dev")]
    #[error(transparent)]
    Dev(#[from] crate::dev::DevError),
}

impl AppError {
    /// The table in `docs/operations.md`.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Worker(WorkerFailure::Connection(ConnectionError::Protocol { .. })) => 3,
            Self::Worker(WorkerFailure::Connection(ConnectionError::Exhausted { .. })) => 4,
            Self::Assemble(AssembleError::Auth(_)) => 5,
            Self::Worker(WorkerFailure::Connection(ConnectionError::Denied { .. })) => 6,
            Self::Worker(WorkerFailure::Zombies { .. }) => 7,
            Self::Worker(WorkerFailure::Unsaid { .. }) => 8,
            Self::Isolation(_) | Self::Assemble(_) | Self::Worker(_) => 1,
            #[cfg(feature = "dev")]
            Self::Dev(error) => error.exit_code(),
        }
    }
}

#[derive(Parser)]
#[command(about = "A gen-worker: takes runs from a scheduler and calls its functions", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// Connect to the scheduler and work until told to leave. The default.
    Serve,
    /// Run an orchestrator and this worker in one process, on this machine only.
    #[cfg(feature = "dev")]
    Dev(crate::dev::DevArguments),
}

/// The body of a worker binary's `main`: reads the arguments and serves every linked function.
pub(crate) fn main(functions: Vec<Function>) -> ExitCode {
    let done = match Arguments::parse().verb.unwrap_or(Verb::Serve) {
        Verb::Serve => serve(functions),
        #[cfg(feature = "dev")]
        Verb::Dev(arguments) => crate::dev::run(functions, arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn serve(functions: Vec<Function>) -> Result<(), AppError> {
    let project = project()?;
    logging::start(&project.env, "info");
    Ok(worker(functions, project)?.run()?)
}

/// What the worker is told, with its credentials out of the environment: user code runs in this process.
pub(crate) fn project() -> Result<Project, AppError> {
    let mut project = Project::read(Path::new("."))?;
    hide_credentials(&mut project.env)?;
    Ok(project)
}

/// A worker with these settings and models that leaves on SIGTERM.
pub(crate) fn worker(functions: Vec<Function>, project: Project) -> Result<Worker, AppError> {
    let mut phases = Phases::begin();
    let config = WorkerConfig::from_env(&project.env)?;
    config.process.apply()?;
    let settings_ms = phases.next();
    let ports = assemble(&config, &functions)?;
    let assemble_ms = phases.next();
    let names: Vec<&str> = functions.iter().map(|function| function.spec().name.as_str()).collect();
    let (worker_id, names) = (config.runtime.worker_id.clone(), names.join(","));
    let builder = Worker::builder(config.runtime).functions(functions).models(project.models);
    let worker = builder.ports(ports).stop_on_signals().build()?;
    let build_ms = phases.next();
    tracing::info!(%worker_id, functions = names, settings_ms, assemble_ms, build_ms, "starting");
    Ok(worker)
}

/// Where the time of the start went.
struct Phases(Instant);

impl Phases {
    fn begin() -> Self {
        Self(Instant::now())
    }

    /// How long the phase took that ends here, in milliseconds.
    fn next(&mut self) -> u64 {
        let since = std::mem::replace(&mut self.0, Instant::now());
        (self.0 - since).as_millis() as u64
    }
}

/// The error and its causes in one line each, for a person.
#[expect(clippy::print_stderr, reason = "the last word of a process is for whoever started it")]
fn tell(error: &dyn Error) {
    eprintln!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because {error}");
        cause = error.source();
    }
}
