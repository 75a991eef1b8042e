//! What the worker is doing, in one line of the log, when SIGUSR1 asks for it.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use serde::Serialize;
use tracing::info;

use crate::{
    admission::{Held, Holder},
    job::Stage,
    outbox::Census,
    vitals::Watched,
};

/// Runs that are listed, those that began first; of the rest there is only a count. A line must not grow with the load.
const MAX_RUNS: usize = 100;

/// Leases and downloads that are listed.
const MAX_MODELS: usize = 100;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Doing {
    /// Since it was admitted.
    pub age: Duration,
    /// `None`: it is between two stages.
    pub stage: Option<Stage>,
}

/// A run as it is listed.
#[derive(Serialize)]
struct Listed<'a> {
    run_id: &'a str,
    attempt: i64,
    function: &'a str,
    age_ms: u64,
    stage: &'a str,
    state: &'a str,
    /// How long it is past its deadline; absent: it is not, or has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    overdue_ms: Option<u64>,
}

/// Writes a snapshot each time that SIGUSR1 comes.
pub(crate) async fn when_asked(watched: &Watched) -> Infallible {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut asked) = signal(SignalKind::user_defined1()) {
            while asked.recv().await.is_some() {
                write(watched);
            }
        }
    }
    #[cfg(not(unix))]
    let _ = watched;
    std::future::pending().await
}

fn write(watched: &Watched) {
    let mut all = watched.admission.list();
    all.sort_by_key(|run| std::cmp::Reverse(run.doing.age));
    let left_out = all.len().saturating_sub(MAX_RUNS);
    all.truncate(MAX_RUNS);
    let runs: Vec<Listed<'_>> = all.iter().map(listed).collect();
    let Held { in_flight, permits, zombies } = watched.admission.held();
    let Census { results, result_bytes, unwritten, oldest, is_acknowledged, events, lost } =
        watched.outbox.census();
    let (available, loading) = watched.reporter.functions();
    let (mut leases, mut downloads) = (watched.reporter.leases(), watched.reporter.downloads());
    leases.truncate(MAX_MODELS);
    downloads.truncate(MAX_MODELS);
    info!(
        phase = ?watched.shutdown.phase(),
        is_connected = watched.meters.is_connected(),
        closed = watched.admission.closed(),
        in_flight,
        permits,
        zombies,
        tasks = watched.tasks.len(),
        gpu_runs = watched.gpu_runs(),
        runs = json(&runs),
        runs_left_out = left_out,
        functions_available = available,
        functions_loading = json(&loading),
        models_fetching = json(&watched.prefetch.under_way()),
        downloads = json(&downloads),
        leases = json(&leases),
        models_resident = json(&watched.reporter.resident()),
        outbox_results = results,
        outbox_bytes = result_bytes,
        outbox_unwritten = unwritten,
        outbox_oldest_ms = oldest.map(millis),
        outbox_acknowledged = is_acknowledged,
        result_retention_ms = millis(watched.result_retention),
        outbox_events = events,
        events_dropped = lost.events,
        results_shed = lost.results,
        reconnects = json(&watched.meters.recent()),
        "snapshot"
    );
}

fn listed(run: &Holder) -> Listed<'_> {
    Listed {
        run_id: run.run_id.as_str(),
        attempt: run.attempt,
        function: run.function.as_str(),
        age_ms: millis(run.doing.age),
        stage: run.doing.stage.map_or("", Stage::name),
        state: match (run.zombie, run.answered) {
            (true, _) => "zombie",
            (false, true) => "answered",
            (false, false) => "running",
        },
        overdue_ms: run
            .deadline
            .and_then(|deadline| Instant::now().checked_duration_since(deadline))
            .map(millis),
    }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it is made of texts and numbers")
}
