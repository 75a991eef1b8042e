//! A process on the other end: a worker, or the echo. Ended when dropped.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::link::{Link, Scheduler};

/// A peer that does not register for so long never will.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is run as a peer.
#[derive(Clone, Copy)]
pub(crate) enum Program<'a> {
    /// This program, as the yardstick.
    Echo,
    /// A worker's binary.
    Worker(&'a Path),
    /// The same with its log down to warnings.
    QuietWorker(&'a Path),
}

pub(crate) struct Peer {
    pub(crate) link: Link,
    /// From just before the process was started to its registration.
    pub(crate) registered_after: Duration,
    process: Child,
    _directory: TempDir,
}

/// Resident memory, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Resident {
    pub(crate) current: u64,
    pub(crate) peak: u64,
}

impl Peer {
    pub(crate) async fn start(scheduler: &mut Scheduler, program: Program<'_>) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let mut command = command(program, scheduler.addr, directory.path());
        let since = Instant::now();
        let process = command.spawn().expect("the peer's binary was built");
        let accepted = timeout(PATIENCE, scheduler.accept()).await;
        let link = accepted.expect("the peer registers");
        Self { link, registered_after: since.elapsed(), process, _directory: directory }
    }

    /// User and system time so far; zero where there is no `/proc`.
    pub(crate) fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.process.id().unwrap_or_default());
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        // After the name, which may hold spaces: the state is field 3, user time 14, system time 15, in hundredths.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Zeros where there is no `/proc`.
    pub(crate) fn resident(&self) -> Resident {
        let path = format!("/proc/{}/status", self.process.id().unwrap_or_default());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let kib = line.trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0);
            kib * 1024
        };
        Resident { current: bytes("VmRSS:"), peak: bytes("VmHWM:") }
    }
}

fn command(program: Program<'_>, addr: SocketAddr, directory: &Path) -> Command {
    let this = std::env::current_exe().expect("this program is a file");
    let mut command = match program {
        Program::Echo => {
            let mut command = Command::new(this);
            command.arg("echo").arg(addr.to_string());
            command
        }
        Program::Worker(path) | Program::QuietWorker(path) => Command::new(path),
    };
    let level = if matches!(program, Program::QuietWorker(_)) { "warn" } else { "info" };
    command
        .env("SCHEDULER_ADDR", addr.to_string())
        .env("WORKER_MODEL_CACHE_DIR", directory.join("models"))
        .env("WORKER_RUN_DIR", directory.join("runs"))
        .env("WORKER_URL_ALLOW", "127.0.0.1")
        .env("RUST_LOG", level)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}
