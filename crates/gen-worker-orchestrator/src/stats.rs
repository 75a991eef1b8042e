//! What an autoscaler and an operator need to know: what waits, for how long, and what the workers could take.

use std::collections::{BTreeMap, BTreeSet};

use gen_worker_core::metric::{Counter, Metric, Readings};
use gen_worker_status::render;

use crate::{
    dispatch::Load,
    queue::{FunctionStats, Refusal},
};

static WAITING: Metric = Metric::gauge(
    "gen_worker_orchestrator_queue_runs",
    "runs",
    &["function"],
    "Runs that wait for a worker, for another attempt included.",
);
static OLDEST: Metric = Metric::gauge(
    "gen_worker_orchestrator_queue_oldest_age_seconds",
    "seconds",
    &["function"],
    "How long ago the oldest run that waits was submitted; 0 when none does.",
);
static RUNNING: Metric = Metric::gauge(
    "gen_worker_orchestrator_running_runs",
    "runs",
    &["function"],
    "Runs that workers have, those of workers that cannot be reached just now included.",
);
static REALTIME: Metric = Metric::gauge(
    "gen_worker_orchestrator_realtime_sessions",
    "sessions",
    &["function"],
    "Realtime sessions that are open at the workers connected here. Each takes the place of a run.",
);
static CAPACITY: Metric = Metric::gauge(
    "gen_worker_orchestrator_capacity_runs",
    "runs",
    &["function"],
    "Runs that the connected workers take at once; a worker that serves several functions counts for each.",
);
static WORKERS: Metric =
    Metric::gauge("gen_worker_orchestrator_workers", "workers", &[], "Streams of workers that are up.");
static PEERS: Metric = Metric::gauge(
    "gen_worker_orchestrator_peers",
    "orchestrators",
    &[],
    "Other orchestrators of the fleet that take workers, as far as they were heard of in the last seconds.",
);
static SUBMITTED: Metric = Metric::counter(
    "gen_worker_orchestrator_submitted_runs_total",
    "runs",
    &[],
    "Runs that were taken, repetitions left out.",
);
static REFUSED: Metric = Metric::counter(
    "gen_worker_orchestrator_refused_runs_total",
    "runs",
    &["reason"],
    "Runs that were not taken: their tenant had too many waiting (tenant_full), all together had (full), their id \
     named another request (conflict), or they could not be stored (unavailable).",
);

/// What `/metrics` says, in its order.
pub const METRICS: &[&Metric] =
    &[&WAITING, &OLDEST, &RUNNING, &REALTIME, &CAPACITY, &WORKERS, &PEERS, &SUBMITTED, &REFUSED];

/// What was counted since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    submitted: Counter,
    conflict: Counter,
    tenant_full: Counter,
    full: Counter,
    unavailable: Counter,
}

impl Stats {
    /// Counts what became of a submission.
    pub(crate) fn submitted(&self, taken: &Result<bool, Refusal>) {
        match taken {
            Ok(true) => self.submitted.one(),
            Ok(false) => {}
            Err(Refusal::Conflict) => self.conflict.one(),
            Err(Refusal::TenantFull { .. }) => self.tenant_full.one(),
            Err(Refusal::Full { .. }) => self.full.one(),
            Err(Refusal::Unavailable) => self.unavailable.one(),
        }
    }

    /// Everything in Prometheus's text format. Of a queue that cannot be asked (`None`) there is nothing: no number is better than
    /// one that would have workers sent home.
    pub(crate) fn render(
        &self,
        queue: Option<&BTreeMap<String, FunctionStats>>,
        workers: &[Load],
        talking: &[String],
        peers: usize,
    ) -> String {
        let mut capacity: BTreeMap<&str, usize> = BTreeMap::new();
        for worker in workers {
            for function in &worker.resources.available_functions {
                *capacity.entry(function).or_default() += worker.slots_for(function);
            }
        }
        let waiting = queue.into_iter().flat_map(BTreeMap::keys).map(String::as_str);
        let known: BTreeSet<&str> = waiting.chain(capacity.keys().copied()).collect();
        let mut readings = Readings::default();
        for function in known {
            if let Some(queue) = queue {
                let FunctionStats { waiting, oldest, running } =
                    queue.get(function).cloned().unwrap_or_default();
                readings.add_by(&WAITING, [function], waiting);
                readings.add_by(&OLDEST, [function], oldest);
                readings.add_by(&RUNNING, [function], running);
            }
            readings.add_by(&REALTIME, [function], talking.iter().filter(|of| *of == function).count());
            readings.add_by(&CAPACITY, [function], capacity.get(function).copied().unwrap_or(0));
        }
        readings.add(&WORKERS, workers.len());
        readings.add(&PEERS, peers);
        readings.add(&SUBMITTED, &self.submitted);
        for (reason, counter) in [
            ("tenant_full", &self.tenant_full),
            ("full", &self.full),
            ("conflict", &self.conflict),
            ("unavailable", &self.unavailable),
        ] {
            readings.add_by(&REFUSED, [reason], counter);
        }
        render(&readings)
    }
}
