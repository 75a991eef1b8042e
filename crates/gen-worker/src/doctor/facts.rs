//! What was seen of a machine and its settings. Nothing here decides anything.

use std::{path::PathBuf, time::Duration};

use gen_worker_runtime::Machine;

/// What was seen. Where the settings have mistakes nothing else of a worker was looked at.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) machine: Machine,
    /// Descriptors that the process may open; `None`: unlimited, or not known.
    pub(super) open_files: Option<u64>,
    /// What is wrong in cozy.toml; `None`: there is none here.
    pub(super) cozy: Option<Vec<String>>,
    /// What the settings mean here; an error: their mistakes.
    pub(super) worker: Result<Worker, String>,
}

/// What a worker with these settings finds.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    pub(super) engine: Engine,
    pub(super) folders: Vec<Folder>,
    /// Whether SCHEDULER_ADDR is set.
    pub(super) names_scheduler: bool,
    pub(super) schedulers: Vec<Peer>,
    /// `None`: COZY_HUB_URL is not set.
    pub(super) hub: Option<Peer>,
    pub(super) clock: Option<Clock>,
    pub(super) token: Token,
    /// `None`: WORKER_STATE_DIR is not set, so that none are left.
    pub(super) faults: Option<Faults>,
}

/// The reports of runs that failed by a fault.
#[derive(Debug, Clone)]
pub(super) struct Faults {
    pub(super) directory: PathBuf,
    /// How many there are; an error: why nobody can say.
    pub(super) count: Result<usize, String>,
    /// `None`: there is none; an error: which it is, and why it cannot be read.
    pub(super) last: Option<Result<Fault, String>>,
}

/// Of a report what a line has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) run_id: String,
    pub(super) function: String,
    pub(super) message: String,
    /// Since it was written.
    pub(super) ago: Duration,
}

/// ONNX Runtime.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    /// Whether a function of this binary takes a model in memory; `None`: it is not known.
    pub(super) is_needed: Option<bool>,
    pub(super) library: Result<Library, String>,
}

#[derive(Debug, Clone)]
pub(super) struct Library {
    pub(super) path: PathBuf,
    pub(super) version: Option<String>,
    pub(super) providers: Vec<Provider>,
}

/// What models may run on, in the order of the settings.
#[derive(Debug, Clone)]
pub(super) struct Provider {
    pub(super) name: String,
    /// Whether it is one of NVIDIA's.
    pub(super) is_nvidia: bool,
    pub(super) works: Result<(), String>,
}

/// A folder that a worker writes to.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    /// The setting that names it.
    pub(super) variable: &'static str,
    pub(super) path: PathBuf,
    /// Whether files can be made there, or the folder itself where it is not there yet.
    pub(super) writable: Result<(), String>,
    /// Bytes that are free there; `None`: the system does not say.
    pub(super) free: Option<u64>,
}

/// Somebody that a worker talks to.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: String,
    pub(super) reached: Result<(), String>,
}

/// This machine's clock against another's.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    /// Whose.
    pub(super) of: String,
    /// How far they are apart; a second of it is the other's rounding.
    pub(super) apart: Duration,
    /// Whether this machine is behind.
    pub(super) is_behind: bool,
}

/// The worker's token.
#[derive(Debug, Clone)]
pub(super) enum Token {
    /// None is set.
    Absent,
    /// It was refused.
    Refused(String),
    /// It may be used.
    Usable {
        /// Whether the scheduler's keys verified it.
        verified: bool,
        /// How long it is good for; `None`: for ever, or it does not say; zero: it has expired.
        left: Option<Duration>,
    },
}
