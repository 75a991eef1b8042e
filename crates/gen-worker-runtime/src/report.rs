//! What a run leaves behind that failed by a fault, its own or the worker's: one small file in `WORKER_STATE_DIR`, for whoever
//! looks for the cause when the log is gone.

mod lines;
mod panic;
mod shelf;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use gen_worker_core::{
    FailureKind, JobFailure, RunFacts, RunId, hide_secrets,
    ports::{LeasedModel, ModelManager, ModelStats},
};
use serde::Serialize;
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::TaskTracker;
use tracing::{Span, info, warn};

use self::shelf::Shelf;
pub(crate) use self::{lines::RECENT, panic::Panicked};
pub use self::{
    lines::keep_line,
    panic::{PanicNote, note_panic},
};
use crate::{config::RuntimeConfig, host::Host, job::Ration};

/// Reports that wait for the disk; what comes beyond them is only counted.
const MAX_WAITING: usize = 8;

/// Longest message of a report, in bytes. With the frames of a panic and the lines a report has some 60 KiB at most.
const MAX_MESSAGE: usize = 4 << 10;

/// Most models and leases that a report lists.
const MAX_MODELS: usize = 32;

/// Where reports are left.
pub(crate) struct Reports {
    shelf: Mutex<Shelf>,
    waiting: Arc<Semaphore>,
    ration: Ration,
    /// Reports that were not written since the last one was.
    left_out: AtomicU64,
    about: Surroundings,
}

/// What a report says beside the run.
pub(crate) struct Surroundings {
    pub config: Arc<RuntimeConfig>,
    pub host: Host,
    pub models: Option<Arc<dyn ModelManager>>,
}

/// What the run itself knows.
pub(crate) struct Case<'a> {
    pub facts: &'a RunFacts,
    pub failure: &'a JobFailure,
    pub elapsed_ms: f64,
    /// The stage in which it failed.
    pub stage: Option<&'static str>,
    pub stages_ms: BTreeMap<&'static str, f64>,
    pub models: Vec<String>,
}

/// A report as it is written. Its form is described in docs/operations.md, and `format` counts its changes.
#[derive(Serialize)]
struct Report {
    format: u32,
    at_unix_ms: u64,
    run_id: String,
    function: String,
    attempt: i64,
    kind: &'static str,
    message: String,
    safe_message: String,
    panic: Option<PanicNote>,
    elapsed_ms: f64,
    stage: Option<&'static str>,
    stages_ms: BTreeMap<&'static str, f64>,
    models: Vec<String>,
    /// At the time when the report was written.
    leases: Vec<LeasedModel>,
    memory: Memory,
    worker: Worker,
    lines: Vec<String>,
    left_out: u64,
}

/// In bytes; what is not known is 0.
#[derive(Serialize)]
struct Memory {
    process: u64,
    machine: u64,
    models: ModelStats,
    gpu: u64,
    gpu_used: u64,
}

#[derive(Serialize)]
struct Worker {
    id: String,
    version: &'static str,
    os: &'static str,
    engine: Option<String>,
    gpu: String,
    gpu_driver: String,
    cuda: String,
}

impl Reports {
    /// Reports below the state directory; `None`: there is none, or none are wanted.
    pub(crate) fn new(about: Surroundings) -> Option<Self> {
        let directory = about.config.state_dir.as_ref()?.join("reports");
        let most = usize::try_from(about.config.failure_reports).unwrap_or(usize::MAX);
        if most == 0 {
            return None;
        }
        RECENT.keep();
        Some(Self {
            shelf: Mutex::new(Shelf::new(directory, most)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            ration: Ration::default(),
            left_out: AtomicU64::new(0),
            about,
        })
    }

    /// Writes a report on a thread of `users`, if the run failed by a fault. Waits for nothing.
    pub(crate) fn leave(self: &Arc<Self>, case: Case<'_>, users: &Handle, tracker: &TaskTracker) {
        if !is_fault(case.failure.kind) {
            return;
        }
        let place = self.waiting.clone().try_acquire_owned().ok();
        let Some(place) = place.filter(|_| self.ration.take().is_some()) else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (reports, run_id) = (self.clone(), case.facts.run_id.clone());
        let (report, span) = (self.report(case), Span::current());
        let write = move || {
            span.in_scope(|| reports.write(&run_id, report));
            drop(place);
        };
        tracker.spawn_blocking_on(write, users);
    }

    fn report(&self, case: Case<'_>) -> Report {
        let Case { facts, failure, elapsed_ms, stage, stages_ms, mut models } = case;
        let (config, host) = (&self.about.config, self.about.host.facts());
        let manager = self.about.models.as_ref();
        models.truncate(MAX_MODELS);
        let mut leases = manager.map(|manager| manager.leases()).unwrap_or_default();
        leases.truncate(MAX_MODELS);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Report {
            format: 1,
            at_unix_ms: since_1970.as_millis() as u64,
            run_id: facts.run_id.to_string(),
            function: facts.function.to_string(),
            attempt: facts.attempt,
            kind: failure.kind.as_str(),
            message: clipped(failure.chain(), MAX_MESSAGE),
            safe_message: clipped(failure.safe_message.clone(), MAX_MESSAGE),
            panic: failure.cause().and_then(|cause| cause.downcast_ref::<Panicked>()).map(Panicked::note),
            elapsed_ms,
            stage,
            stages_ms,
            models,
            leases,
            memory: Memory {
                process: 0,
                machine: host.memory_bytes,
                models: manager.map(|manager| manager.stats()).unwrap_or_default(),
                gpu: host.gpu.memory_bytes,
                gpu_used: host.gpu.memory_used_bytes,
            },
            worker: Worker {
                id: config.worker_id.to_string(),
                version: env!("CARGO_PKG_VERSION"),
                os: std::env::consts::OS,
                engine: manager.and_then(|manager| manager.engine_version()),
                gpu: host.gpu.name.clone(),
                gpu_driver: host.gpu.driver.clone(),
                cuda: config.cuda_version.clone().unwrap_or_else(|| host.gpu.cuda_version.clone()),
            },
            lines: Vec::new(),
            left_out: self.left_out.swap(0, Ordering::Relaxed),
        }
    }

    /// What takes time is done here.
    fn write(&self, run_id: &RunId, mut report: Report) {
        report.memory.process = process_bytes();
        let lines = RECENT.about(run_id.as_str());
        report.lines = lines.iter().map(|line| hide_secrets(line).into_owned()).collect();
        let text = serde_json::to_vec_pretty(&report).expect("it is made of texts and numbers");
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        match shelf.put(report.at_unix_ms, run_id, &text) {
            Ok(path) => info!(report = %path.display(), "a failure was written down"),
            Err(error) => warn!(%error, "a failure could not be written down"),
        }
    }
}

/// A fault of the function or the worker, and not of what they were given.
fn is_fault(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Internal | FailureKind::Fatal)
}

/// The text, cut between characters.
fn clipped(mut text: String, max_bytes: usize) -> String {
    text.truncate(text.floor_char_boundary(max_bytes));
    text
}

/// Main memory that the process takes; 0 where the system does not say.
fn process_bytes() -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}
