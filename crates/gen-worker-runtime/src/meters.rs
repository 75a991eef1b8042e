//! What the worker counts of itself while it works. Counting is an atomic addition.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use gen_worker_core::{
    FailureKind, FunctionName,
    metric::{Counter, Histogram, Metric, Readings},
};
use serde::Serialize;

use crate::{job::Stage, registry::Registry};

/// How a run ended, for those who count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failed(FailureKind),
    /// Nobody was told: a newer attempt took its place.
    Superseded,
}

/// The kinds of failure, in the order of their numbers.
const KINDS: [FailureKind; 8] = [
    FailureKind::Canceled,
    FailureKind::Validation,
    FailureKind::Retryable,
    FailureKind::Resource,
    FailureKind::Fatal,
    FailureKind::Auth,
    FailureKind::Internal,
    FailureKind::Timeout,
];

impl Outcome {
    const COUNT: usize = KINDS.len() + 2;

    fn all() -> [Self; Self::COUNT] {
        std::array::from_fn(|at| match at {
            0 => Self::Success,
            1 => Self::Superseded,
            _ => Self::Failed(KINDS[at - 2]),
        })
    }

    fn number(self) -> usize {
        match self {
            Self::Success => 0,
            Self::Superseded => 1,
            Self::Failed(kind) => kind as usize + 2,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Superseded => "superseded",
            Self::Failed(kind) => kind.as_str(),
        }
    }
}

/// Why a stream is to be dialled again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// There was none yet: nobody answered, or not in time.
    Unreachable,
    Lost,
    Unauthenticated,
    Denied,
    Superseded,
    Redirected,
    TooManyPings,
    Unimplemented,
}

impl Cause {
    const ALL: [Self; 8] = [
        Self::Unreachable,
        Self::Lost,
        Self::Unauthenticated,
        Self::Denied,
        Self::Superseded,
        Self::Redirected,
        Self::TooManyPings,
        Self::Unimplemented,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Superseded => "superseded",
            Self::Redirected => "redirected",
            Self::TooManyPings => "too_many_pings",
            Self::Unimplemented => "unimplemented",
        }
    }
}

/// Reconnects that a snapshot shows.
const MAX_RECENT: usize = 8;

/// A reconnect that is past.
#[derive(Debug, Serialize)]
pub(crate) struct Reconnect {
    ago_ms: u64,
    cause: &'static str,
}

macro_rules! metrics {
    ($($name:ident = $kind:ident($($given:expr),*);)*) => {
        $(pub(crate) static $name: Metric = Metric::$kind($($given),*);)*
        /// What the runtime counts and measures of itself.
        pub static METRICS: &[&Metric] = &[$(&$name),*];
    };
}

metrics! {
    RUNS = counter("gen_worker_runs_total", "runs", &["function", "outcome"],
        "Runs that were admitted and have ended, realtime sessions included.");
    REFUSED = counter("gen_worker_runs_refused_total", "runs", &["outcome"], "Runs that were not admitted.");
    RUN_SECONDS = histogram("gen_worker_run_duration_seconds", &["function"],
        "How long runs took, from admission to their last word.");
    STAGE_SECONDS = histogram("gen_worker_run_stage_duration_seconds", &["stage"],
        "How long runs took in each of their stages; a stage that a run did not reach is not counted. The last, deliver, is of refusals too.");
    IN_FLIGHT = gauge("gen_worker_runs_in_flight", "runs", &[], "Runs that were admitted and not answered yet.");
    PERMITS = gauge("gen_worker_permits_held", "permits", &[],
        "Permits that are held, those of work that goes on after its run was answered included.");
    ZOMBIES = gauge("gen_worker_zombies", "functions", &[],
        "Functions that go on after they were told to stop and their run was answered.");
    GPU_RUNS = gauge("gen_worker_gpu_runs", "runs", &[], "Runs that hold a GPU.");
    FUNCTIONS = gauge("gen_worker_functions", "functions", &["state"],
        "Functions that are advertised (available), and that wait for set-ups or their models (loading).");
    CONNECTED = gauge("gen_worker_connected", "streams", &[], "Whether there is a stream to a scheduler: 0 or 1.");
    RECONNECTS = counter("gen_worker_reconnects_total", "streams", &["cause"],
        "Streams and dials that ended otherwise than by leaving, so that another dial was due.");
    HEARTBEAT_LATENESS = histogram("gen_worker_heartbeat_lateness_seconds", &[],
        "How long after it was due each heartbeat was made.");
    OUTBOX_RESULTS = gauge("gen_worker_outbox_results", "results", &[], "Results that are held because they are not delivered.");
    OUTBOX_UNWRITTEN = gauge("gen_worker_outbox_unwritten_results", "results", &[],
        "Of the results that are held, those that wait for the journal or the stream.");
    OUTBOX_BYTES = gauge("gen_worker_outbox_result_bytes", "bytes", &[], "What the results that are held take.");
    OUTBOX_AGE = gauge("gen_worker_outbox_oldest_result_age_seconds", "seconds", &[],
        "How long the oldest result has been held; 0 when none is.");
    OUTBOX_EVENTS = gauge("gen_worker_outbox_events", "events", &[], "Events of runs that wait for the stream.");
    EVENTS_DROPPED = counter("gen_worker_events_dropped_total", "events", &[],
        "Events that were dropped because the scheduler reads more slowly than runs talk.");
    RESULTS_SHED = counter("gen_worker_results_shed_total", "results", &[],
        "Results that were forgotten before their retention was over, to stay within WORKER_RESULT_BUFFER_BYTES.");
    MODELS = gauge("gen_worker_models", "models", &["place"], "Models on disk, and in memory.");
    GPUS = gauge("gen_worker_gpus", "devices", &[], "GPUs of this machine.");
    MODEL_LEASES = gauge("gen_worker_model_leases", "leases", &[],
        "Leases of models in memory that were granted and have not ended.");
    MODEL_MEMORY = gauge("gen_worker_model_memory_bytes", "bytes", &["device"],
        "Memory that models take, by where they run: the GPU's number, or cpu for main memory.");
    MODEL_BUDGET = gauge("gen_worker_model_memory_budget_bytes", "bytes", &["device"],
        "Memory that models may take; 0: there is no budget.");
    MODEL_LOADS = counter("gen_worker_model_loads_total", "models", &[], "Loads of models into memory that were begun.");
    MODEL_HITS = counter("gen_worker_model_memory_hits_total", "leases", &[],
        "Leases of models that were in memory when they were asked for.");
    MODEL_MISSES = counter("gen_worker_model_memory_misses_total", "leases", &[],
        "Leases of models that were not in memory when they were asked for, those that were never granted included.");
    MODEL_EVICTIONS = counter("gen_worker_model_memory_evictions_total", "models", &[], "Models that were taken out of memory.");
    GPU_MEMORY = gauge("gen_worker_gpu_memory_bytes", "bytes", &["device"], "Memory of each GPU.");
    GPU_MEMORY_USED = gauge("gen_worker_gpu_memory_used_bytes", "bytes", &["device"],
        "Memory of each GPU that is in use, by whichever process.");
    GPU_UTILIZATION = gauge("gen_worker_gpu_utilization_ratio", "ratio", &["device"],
        "Share of the driver's last sampling period in which the GPU computed, from 0 to 1, for whichever process.");
}

/// The counters of a worker.
pub(crate) struct Meters {
    functions: BTreeMap<FunctionName, FunctionMeters>,
    refused: [Counter; KINDS.len()],
    stages: [Histogram; Stage::ALL.len()],
    reconnects: [Counter; Cause::ALL.len()],
    recent: Mutex<VecDeque<(Instant, Cause)>>,
    heartbeat_lateness: Histogram,
    is_connected: AtomicBool,
    was_connected: AtomicBool,
}

#[derive(Default)]
struct FunctionMeters {
    outcomes: [Counter; Outcome::COUNT],
    duration: Histogram,
}

impl Meters {
    pub(crate) fn new(registry: &Registry) -> Self {
        let names = registry.iter().map(|function| function.spec().name.clone());
        Self {
            functions: names.map(|name| (name, FunctionMeters::default())).collect(),
            refused: Default::default(),
            stages: Default::default(),
            reconnects: Default::default(),
            recent: Mutex::default(),
            heartbeat_lateness: Histogram::default(),
            is_connected: AtomicBool::new(false),
            was_connected: AtomicBool::new(false),
        }
    }

    /// A run of this function has ended.
    pub(crate) fn ended(
        &self,
        function: &FunctionName,
        outcome: Outcome,
        total: Duration,
        stages: impl Iterator<Item = (Stage, Duration)>,
    ) {
        // A run is of a function that is registered.
        let Some(meters) = self.functions.get(function) else { return };
        meters.outcomes[outcome.number()].one();
        meters.duration.observe(total);
        for (stage, took) in stages {
            self.stages[stage as usize].observe(took);
        }
    }

    pub(crate) fn refused(&self, kind: FailureKind) {
        self.refused[kind as usize].one();
    }

    /// There is a stream.
    pub(crate) fn connected(&self) {
        self.is_connected.store(true, Ordering::Relaxed);
        self.was_connected.store(true, Ordering::Relaxed);
    }

    /// A session is over; `None`: the worker has left.
    pub(crate) fn disconnected(&self, cause: Option<Cause>) {
        self.is_connected.store(false, Ordering::Relaxed);
        if let Some(cause) = cause {
            self.reconnects[cause as usize].one();
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            recent.push_back((Instant::now(), cause));
            if recent.len() > MAX_RECENT {
                recent.pop_front();
            }
        }
    }

    /// The last reconnects, oldest first.
    pub(crate) fn recent(&self) -> Vec<Reconnect> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let ago_ms = |since: &Instant| since.elapsed().as_millis() as u64;
        recent
            .iter()
            .map(|(since, cause)| Reconnect { ago_ms: ago_ms(since), cause: cause.as_str() })
            .collect()
    }

    pub(crate) fn heartbeat(&self, lateness: Duration) {
        self.heartbeat_lateness.observe(lateness);
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    pub(crate) fn was_connected(&self) -> bool {
        self.was_connected.load(Ordering::Relaxed)
    }

    pub(crate) fn measure(&self, readings: &mut Readings) {
        for (function, meters) in &self.functions {
            for outcome in Outcome::all() {
                let count = &meters.outcomes[outcome.number()];
                readings.add_by(&RUNS, [function.as_str(), outcome.as_str()], count);
            }
        }
        for (function, meters) in &self.functions {
            readings.add_by(&RUN_SECONDS, [function.as_str()], &meters.duration);
        }
        for kind in KINDS {
            readings.add_by(&REFUSED, [kind.as_str()], &self.refused[kind as usize]);
        }
        for stage in Stage::ALL {
            readings.add_by(&STAGE_SECONDS, [stage.name()], &self.stages[stage as usize]);
        }
        for cause in Cause::ALL {
            readings.add_by(&RECONNECTS, [cause.as_str()], &self.reconnects[cause as usize]);
        }
        readings.add(&CONNECTED, u64::from(self.is_connected()));
        readings.add(&HEARTBEAT_LATENESS, &self.heartbeat_lateness);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_causes_that_the_page_explains_are_those_that_there_are() {
        let page = include_str!("../../../docs/operations.md");
        let (_, table) = page.split_once("| cause | what it means |").expect("there is a table of them");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let explained: Vec<_> = rows.map(|row| row.split('`').nth(1).expect("it names one")).collect();
        assert_eq!(explained, Cause::ALL.map(Cause::as_str));
    }

    #[test]
    fn each_outcome_and_cause_has_a_place_of_its_own() {
        for (at, outcome) in Outcome::all().into_iter().enumerate() {
            assert_eq!(outcome.number(), at, "{outcome:?}");
        }
        for (at, cause) in Cause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at, "{cause:?}");
        }
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at, "{stage:?}");
        }
    }
}
