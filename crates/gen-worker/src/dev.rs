//! `dev`: an orchestrator, and beside it this worker, as a process of its own that makes place for the next build of its binary.

mod build;

use std::{
    io,
    process::{ExitStatus, Stdio},
};

use gen_worker_core::{
    Function,
    config::{ConfigErrors, Env},
};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

use self::build::Build;
use crate::{
    app::{AppError, project, worker},
    assemble::AssembleError,
    config::WorkerConfig,
    here::{self, Folders, HereError, Nearby},
    isolation::Stdin,
    logging,
    signals::Signals,
};

/// The verb of the worker's process.
pub(crate) const BESIDE: &str = "beside-orchestrator";

/// How long runs have to finish before a worker makes place, in seconds, where WORKER_DRAIN_TIMEOUT_SECONDS does not say.
const DRAIN: &str = "60";

/// What the worker's process is told.
#[derive(clap::Args)]
pub(crate) struct Beside {
    #[command(flatten)]
    nearby: Nearby,
    #[command(flatten)]
    folders: Folders,
    /// The process of the orchestrator
    #[arg(long)]
    parent: u32,
}

pub(crate) fn run(folders: &Folders) -> Result<(), AppError> {
    let env = project(Stdin::Dropped)?.env;
    logging::start(&env, "info").map_err(AssembleError::Threads)?;
    let config = orchestrator(&env, folders)?;
    let build = Build::at(std::env::current_exe().map_err(HereError::Binary)?);
    // On this thread: Linux tells the worker when it is gone.
    here::runtime()?.block_on(both(config, &env, folders, build))
}

/// The orchestrator until somebody ends it, and workers one after the other.
async fn both(
    config: OrchestratorConfig,
    env: &Env,
    folders: &Folders,
    mut build: Build,
) -> Result<(), AppError> {
    let mut signals = Signals::listen().map_err(HereError::Signals)?;
    let orchestrator = Orchestrator::start(config).await.map_err(HereError::Orchestrator)?;
    say(&format!("the dashboard is at {}", orchestrator.base_url()));
    say(&format!("send runs to {}v1/runs; Ctrl-C to leave", orchestrator.base_url()));
    let mut worker = worker_of(&build, &Nearby::of(&orchestrator), env, folders);
    let ended = supervise(&mut worker, &mut build, &mut signals).await;
    orchestrator.stop().await;
    ended
}

fn orchestrator(env: &Env, folders: &Folders) -> Result<OrchestratorConfig, ConfigErrors> {
    let mut errors = ConfigErrors::default();
    let config = OrchestratorConfig::from_env(env, &mut errors);
    errors.into_result(folders.serve(config))
}

/// The command that starts the worker. It reads its settings as this process does, and gets the credentials that this one has
/// taken out of its environment.
fn worker_of(build: &Build, nearby: &Nearby, env: &Env, folders: &Folders) -> Command {
    let mut command = Command::new(build.path());
    command.arg(BESIDE).args(nearby.arguments()).args(folders.arguments());
    command.args(["--parent", &std::process::id().to_string()]);
    for var in WorkerConfig::variables().into_iter().flat_map(|(_, vars)| vars).filter(|var| var.is_secret())
    {
        if let Some(value) = env.get(var.name) {
            command.env(var.name, value);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    // Ctrl-C is for the orchestrator, which tells the worker.
    #[cfg(unix)]
    command.process_group(0);
    command
}

/// Why there is no worker any more.
enum End {
    /// It ended by itself; `None`: it could not be started.
    Alone(Option<ExitStatus>),
    /// There is another build.
    Replaced,
    /// Somebody ended all of it.
    Told,
}

/// Starts the worker, and each new build of it once the one before has left. A worker that cannot even start the first time
/// ends it; one that ends later waits for the next build.
async fn supervise(command: &mut Command, build: &mut Build, signals: &mut Signals) -> Result<(), AppError> {
    let mut is_first = true;
    loop {
        build.take();
        let end = match command.spawn() {
            // Somebody has it open who may still write it.
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => tokio::select! {
                () = sleep(build::LOOK) => continue,
                () = signals.next() => return Ok(()),
            },
            Ok(worker) => attend(worker, build, signals).await.map_err(HereError::Worker)?,
            Err(error) => {
                say(&format!("the worker cannot be started: {error}"));
                End::Alone(None)
            }
        };
        match end {
            End::Told => return Ok(()),
            End::Replaced => {}
            End::Alone(status) => {
                if let (true, Some(code @ (1 | 2))) = (is_first, status.and_then(|status| status.code())) {
                    return Err(AppError::NoStart { code: code as u8 });
                }
                let how = status.map(|status| format!("the worker ended, {status}: ")).unwrap_or_default();
                say(&format!("{how}it is started again once its binary is rebuilt; Ctrl-C to leave"));
                tokio::select! {
                    () = build.next() => {}
                    () = signals.next() => return Ok(()),
                }
            }
        }
        say("starting the worker that was built");
        is_first = false;
    }
}

/// A worker until it has ended. One that makes place finishes its runs; a second signal cancels them.
async fn attend(mut worker: Child, build: &mut Build, signals: &mut Signals) -> io::Result<End> {
    let mut end = tokio::select! {
        status = worker.wait() => return Ok(End::Alone(Some(status?))),
        () = build.next() => {
            say("the binary was rebuilt: the worker finishes its runs and makes place");
            End::Replaced
        }
        () = signals.next() => End::Told,
    };
    loop {
        ask_to_leave(&mut worker)?;
        tokio::select! {
            status = worker.wait() => {
                status?;
                return Ok(end);
            }
            () = signals.next() => end = End::Told,
        }
    }
}

#[cfg(unix)]
fn ask_to_leave(worker: &mut Child) -> io::Result<()> {
    use rustix::process::{Pid, Signal, kill_process};

    // Without an id it has ended, and its place is not another's: nobody has waited for it.
    let id = worker.id().and_then(|id| Pid::from_raw(id as i32));
    Ok(id.map_or(Ok(()), |id| kill_process(id, Signal::TERM))?)
}

#[cfg(not(unix))]
fn ask_to_leave(worker: &mut Child) -> io::Result<()> {
    worker.start_kill()
}

/// The worker's process.
pub(crate) fn beside(functions: Vec<Function>, told: &Beside) -> Result<(), AppError> {
    let mut project = project(Stdin::Dropped)?;
    logging::start(&project.env, "info").map_err(AssembleError::Threads)?;
    leave_with(told.parent).map_err(HereError::Worker)?;
    let config = orchestrator(&project.env, &told.folders)?;
    told.nearby.point(&mut project.env, here::token(&config).as_ref(), &told.folders);
    project.env.set_default("WORKER_DRAIN_TIMEOUT_SECONDS", DRAIN);
    Ok(worker(functions, project)?.run()?)
}

/// From here on the end of that process, whatever it dies of, is this one's SIGTERM.
#[cfg(target_os = "linux")]
fn leave_with(parent: u32) -> io::Result<()> {
    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

    set_parent_process_death_signal(Some(Signal::TERM))?;
    match getppid() == Pid::from_raw(parent as i32) {
        true => Ok(()),
        false => Err(io::Error::other("the orchestrator has gone")),
    }
}

#[cfg(not(target_os = "linux"))]
fn leave_with(_parent: u32) -> io::Result<()> {
    Ok(())
}

#[expect(clippy::print_stderr, reason = "said to whoever started it")]
fn say(text: &str) {
    eprintln!("{text}");
}
