//! Measures settled no-op runs: by orchestrators on NATS JetStream and by one on its own file, against what publishes,
//! leases and acknowledges the same payloads on the same servers and does nothing else.
//!
//! Orchestrators, workers and servers are processes of their own; the callers and the yardstick are this one. Rounds are
//! interleaved, and each number is the median of its rounds. Nothing here asserts a time.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to the person at the terminal")]

#[path = "../orchestrator/callers.rs"]
mod callers;
#[path = "../orchestrator/fleet.rs"]
mod fleet;
#[path = "../orchestrator/raw.rs"]
mod raw;
#[path = "../report.rs"]
mod report;
#[path = "../orchestrator/steps.rs"]
mod steps;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use gen_worker_testkit::NatsServers;

use crate::{callers::Callers, fleet::Fleet, raw::Raw, report::Report, steps::Steps};

/// Rounds of each measurement.
const ROUNDS: usize = 5;

/// One round of one of the two.
const WINDOW: Duration = Duration::from_secs(2);

/// What goes before a round and is not counted: both begin with nothing in flight.
const BEFORE: Duration = Duration::from_millis(500);

/// As many at once as keep everybody busy, and as few as leave nobody waiting.
const MANY: usize = 256;
const FEW: usize = 4;

#[derive(Parser)]
struct Arguments {
    /// The command line, which is the orchestrator.
    #[arg(long)]
    orchestrator: PathBuf,
    /// The bench's own worker.
    #[arg(long)]
    worker: PathBuf,
    /// The NATS server.
    #[arg(long)]
    nats: PathBuf,
    /// Measures only the rows whose name has this in it, such as `R1, 1`.
    #[arg(long, default_value = "")]
    only: String,
    /// How many tenants call.
    #[arg(long, default_value_t = 1)]
    tenants: usize,
    /// Leaves the yardstick out, as for a profile.
    #[arg(long)]
    alone: bool,
    /// Prints JSON in place of a table.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() {
    let asked = Arguments::parse();
    let mut report = Report::default();
    for replicas in [1, 3] {
        let rows = (1..=3).map(|count| (count, format!("JetStream R{replicas}, {count} of them")));
        let rows: Vec<_> = rows.filter(|(_, name)| name.contains(&asked.only)).collect();
        if rows.is_empty() {
            continue;
        }
        let nats = NatsServers::start(&asked.nats, replicas).await;
        let raw = Raw::start(&nats.urls(), replicas).await;
        let steps = Steps::start(&nats.urls(), replicas).await;
        for (count, name) in rows {
            let fleet = Fleet::on_nats(&asked.orchestrator, &asked.worker, count, &nats, replicas).await;
            let yardsticks = (!asked.alone).then_some((&raw, &steps));
            measure(&mut report, &name, fleet.callers(asked.tenants), yardsticks).await;
        }
    }
    if "file".contains(&asked.only) {
        let fleet = Fleet::on_file(&asked.orchestrator, &asked.worker).await;
        measure(&mut report, "file", fleet.callers(asked.tenants), None).await;
    }
    print!("{}", if asked.json { report.json() + "\n" } else { report.table() });
}

/// By turns with the yardsticks, each of which is the first at times.
async fn measure(report: &mut Report, name: &str, callers: Callers, yardsticks: Option<(&Raw, &Steps)>) {
    let (mut rates, mut waits) = ([Vec::new(), Vec::new(), Vec::new()], Vec::new());
    for round in 0..ROUNDS {
        for turn in 0..rates.len() {
            let which = (round + turn) % rates.len();
            let rate = match (which, yardsticks) {
                (0, _) => callers.ask(MANY, BEFORE, WINDOW).await.per_second(WINDOW),
                (1, Some((raw, _))) => raw.per_second(MANY, BEFORE, WINDOW).await,
                (_, Some((_, steps))) => steps.per_second(MANY, BEFORE, WINDOW).await,
                (_, None) => continue,
            };
            rates[which].push(rate);
        }
        waits.push(callers.ask(FEW, BEFORE, WINDOW).await);
    }
    let [settled, raw, steps] = rates;
    eprintln!("{name}: {settled:.0?} of {raw:.0?} and {steps:.0?}");
    let settled = median(settled);
    for (beside, rates, goal) in [("messages", raw, "≥ 0.3"), ("the same writes", steps, "")] {
        if !rates.is_empty() {
            let what = format!("{name}: settled runs, {MANY} at once, beside {beside}");
            report.add(what, "runs/s", settled).beside(median(rates)).goal(goal);
        }
    }
    if yardsticks.is_none() {
        report.add(format!("{name}: settled runs, {MANY} at once"), "runs/s", settled);
    }
    for (share, percent) in [(500, "p50"), (990, "p99")] {
        let of_rounds = waits.iter().map(|round| round.wait_ms(share)).collect();
        report.add(format!("{name}: submit to result, {FEW} at once, {percent}"), "ms", median(of_rounds));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
