//! What a worker binary does: its verbs and its exit codes.

use std::{path::Path, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand};
use gen_worker_core::{Function, config::ConfigErrors};
use gen_worker_runtime::{ConnectionError, Ports, Worker, WorkerBuilder, WorkerFailure};

use crate::{
    __private::configured,
    assemble::{AssembleError, assemble},
    backlog::STDERR,
    config::{Project, WorkerConfig, cozy_toml},
    cozy_toml::CozyToml,
    doctor::DoctorArguments,
    isolation::{IsolationError, Stdin, hide_credentials},
    logging, manifest,
    prefetch::ModelsVerb,
    run_room::RunRoom,
    tell::tell,
};

/// What ended the process badly, and the code it leaves behind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("the settings have mistakes:\n{0}")]
    Config(ConfigErrors),
    #[error(transparent)]
    Isolation(#[from] IsolationError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    #[error(transparent)]
    Worker(#[from] WorkerFailure),
    #[error("{0}")]
    Usage(String),
    /// `models prefetch` did not fetch all it was asked for.
    #[error("{missing} models could not be fetched")]
    Missing { missing: usize },
    /// What `doctor` has found.
    #[error("a worker cannot work so")]
    Ill,
    /// What `health` asked.
    #[error("the worker is not well: {0}")]
    Unwell(String),
    #[cfg(feature = "dev")]
    #[error(transparent)]
    Here(#[from] crate::here::HereError),
    #[cfg(feature = "dev")]
    #[error(transparent)]
    Call(#[from] crate::call::CallError),
    /// The worker of `dev` ended at once, and has said why.
    #[cfg(feature = "dev")]
    #[error("the worker could not start")]
    NoStart {
        /// What it left behind.
        code: u8,
    },
    /// The worker of a run ended before the run did, or badly after it.
    #[cfg(feature = "dev")]
    #[error("the worker of the run ended badly")]
    Ended(#[source] WorkerFailure),
    /// A model or an input of a run could not be fetched.
    #[cfg(feature = "dev")]
    #[error("the run failed: {message}")]
    Unfetched { message: String },
}

// No source: its text is in the message.
impl From<ConfigErrors> for AppError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

impl AppError {
    /// The table in `docs/operations.md`.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::Assemble(AssembleError::UnknownManager { .. }) => 2,
            Self::Missing { .. } => 3,
            Self::Worker(WorkerFailure::Connection(ConnectionError::Protocol { .. })) => 3,
            Self::Worker(WorkerFailure::Connection(ConnectionError::Exhausted { .. })) => 4,
            Self::Assemble(AssembleError::Auth(_)) => 5,
            Self::Worker(WorkerFailure::Connection(ConnectionError::Denied { .. })) => 6,
            Self::Worker(WorkerFailure::Zombies { .. }) => 7,
            Self::Worker(WorkerFailure::Unsaid { .. }) => 8,
            Self::Worker(WorkerFailure::SetUp(_)) => 9,
            Self::Isolation(_) | Self::Assemble(_) | Self::Worker(_) | Self::Unwell(_) | Self::Ill => 1,
            #[cfg(feature = "dev")]
            Self::Here(_) | Self::Ended(_) => 1,
            #[cfg(feature = "dev")]
            Self::NoStart { code } => *code,
            #[cfg(feature = "dev")]
            Self::Call(error) => error.exit_code(),
            #[cfg(feature = "dev")]
            Self::Unfetched { .. } => 3,
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
    /// Connect to the scheduler and work until told to leave. The default
    Serve,
    /// List the functions
    List {
        /// As the manifest that a build needs: schemas, resources, models, and what cozy.toml says
        #[arg(long)]
        json: bool,
    },
    /// Say what is wrong with this machine, and how to mend it. Exits with 1 if a worker cannot work so
    Doctor(DoctorArguments),
    /// Say whether the worker on this machine lives, as its WORKER_HTTP_ADDR does. Exits with 1 if it does not
    Health,
    /// Models on this machine
    #[command(subcommand)]
    Models(ModelsVerb),
    /// Run a function once, by the executor of production: results go to stdout, all else to stderr
    #[cfg(feature = "dev")]
    Run(crate::run::RunArguments),
    /// Run an orchestrator and this worker, which is started again when its binary is rebuilt, on this machine only
    #[cfg(feature = "dev")]
    Dev(crate::here::Folders),
    /// The worker of `dev`
    #[cfg(feature = "dev")]
    #[command(hide = true, name = crate::dev::BESIDE)]
    Beside(crate::dev::Beside),
}

/// The body of a worker binary's `main`: reads the arguments and serves every linked function.
pub(crate) fn main(functions: Vec<Function>) -> ExitCode {
    let done = match Arguments::parse().verb.unwrap_or(Verb::Serve) {
        Verb::Serve => serve(functions),
        Verb::List { json } => list(&functions, json),
        Verb::Doctor(arguments) => crate::doctor::run(&arguments, &functions),
        Verb::Health => crate::health::run(),
        Verb::Models(verb) => crate::prefetch::run(verb),
        #[cfg(feature = "dev")]
        Verb::Run(arguments) => crate::run::run(functions, arguments),
        #[cfg(feature = "dev")]
        Verb::Dev(folders) => crate::dev::run(&folders),
        #[cfg(feature = "dev")]
        Verb::Beside(told) => crate::dev::beside(functions, &told),
    };
    let code = match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    };
    STDERR.flush();
    code
}

fn serve(functions: Vec<Function>) -> Result<(), AppError> {
    let project = project(Stdin::Dropped)?;
    logging::start(&project.env, "info").map_err(AssembleError::Threads)?;
    Ok(worker(functions, project)?.run()?)
}

/// What the functions are. What is wrong in cozy.toml is left out of the manifest and said beside it.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the answer is for whoever typed the command")]
fn list(functions: &[Function], json: bool) -> Result<(), AppError> {
    if !json {
        manifest::lines(functions).iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    let mut errors = ConfigErrors::default();
    let (cozy, mistakes) = CozyToml::parse(&cozy_toml(Path::new("."), &mut errors));
    errors.into_result(())?;
    mistakes.iter().for_each(|mistake| eprintln!("warning: {mistake}"));
    println!("{:#}", manifest::manifest(functions, &cozy));
    Ok(())
}

/// What the worker is told, with its credentials out of the environment: user code runs in this process.
pub(crate) fn project(stdin: Stdin) -> Result<Project, AppError> {
    let mut project = Project::read(Path::new("."))?;
    hide_credentials(&mut project.env, stdin)?;
    Ok(project)
}

/// A worker with these settings and models that leaves on SIGTERM.
pub(crate) fn worker(functions: Vec<Function>, project: Project) -> Result<Worker, AppError> {
    worker_with(functions, project, |builder, ports| builder.ports(ports).stop_on_signals())
}

/// A worker with these settings and models, finished with the ports that they mean.
pub(crate) fn worker_with(
    functions: Vec<Function>,
    project: Project,
    finish: impl FnOnce(WorkerBuilder, Ports) -> WorkerBuilder,
) -> Result<Worker, AppError> {
    let mut phases = Phases::begin();
    let mut config = WorkerConfig::from_env(&project.env)?;
    config.process.apply()?;
    let room = RunRoom::move_in(&mut config);
    let settings_ms = phases.next();
    let ports = assemble(&config, &functions)?;
    let assemble_ms = phases.next();
    let names: Vec<&str> = functions.iter().map(|function| function.spec().name.as_str()).collect();
    let (worker_id, names) = (config.runtime.worker_id.clone(), names.join(","));
    // The room is the worker's for as long as the worker is.
    let builder = Worker::builder(config.runtime).functions(functions).models(project.models).state(room);
    let builder = configured(builder);
    let worker = finish(builder, ports).build()?;
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
