//! What is measured, in which order.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use serde::Serialize;

use crate::{
    ROUNDS,
    link::Scheduler,
    load::{Load, Measured, Until, drive, start_aside},
    peer::{Peer, Program},
    report::Report,
};

/// One round of no-op runs.
const WINDOW: Duration = Duration::from_millis(1_000);

/// A worker at rest has done what it does after its start.
const SETTLE: Duration = Duration::from_millis(1_500);

const SLEEPERS: usize = 10_000;
const NAP: Duration = Duration::from_millis(1_000);

/// Two heartbeats come in it.
const SPIN: Duration = Duration::from_secs(21);

const FLOOD: u32 = 1_000_000;
const BESIDE_FLOOD: usize = 20_000;

#[derive(Serialize)]
struct Text {
    text: &'static str,
}

/// 100 bytes in all, as the ceilings of the machine were measured with.
const INPUT: Text =
    Text { text: "a picture of a lighthouse on a cliff at dusk, oil on canvas, with gulls above the sea" };

#[derive(Serialize)]
struct Sleep {
    ms: u64,
}

#[derive(Serialize)]
struct Flood {
    events: u32,
}

/// Everything, within four minutes.
pub(crate) async fn all(worker: &Path, conformance: Option<&Path>) -> Report {
    let (mut report, mut scheduler) = (Report::default(), Scheduler::start().await);
    registration(&mut report, &mut scheduler, worker, conformance).await;
    idle(&mut report, &mut scheduler, worker, conformance).await;
    no_op(&mut report, &mut scheduler, worker).await;
    sleepers(&mut report, &mut scheduler, worker).await;
    flood(&mut report, &mut scheduler, worker).await;
    heartbeats(&mut report, &mut scheduler, worker).await;
    report
}

/// No-op runs a second of the worker and of the echo, in ten rounds each.
pub(crate) async fn profile(worker: &Path, in_flight: usize) -> (f64, f64) {
    let mut scheduler = Scheduler::start().await;
    let mut echo = Peer::start(&mut scheduler, Program::Echo).await;
    let mut peer = Peer::start(&mut scheduler, Program::Worker(worker)).await;
    let (mut raw, mut runs) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        raw.push(no_ops(&mut echo, in_flight, WINDOW).await.per_second());
        runs.push(no_ops(&mut peer, in_flight, WINDOW).await.per_second());
    }
    (median(runs), median(raw))
}

async fn registration(
    report: &mut Report,
    scheduler: &mut Scheduler,
    worker: &Path,
    conformance: Option<&Path>,
) {
    let (mut echoes, mut workers, mut large) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 3 {
        echoes.push(start_ms(scheduler, Program::Echo).await);
        workers.push(start_ms(scheduler, Program::Worker(worker)).await);
        if let Some(conformance) = conformance {
            large.push(start_ms(scheduler, Program::Worker(conformance)).await);
        }
    }
    let echo = median(echoes);
    report.add("exec to registration", "ms", median(workers)).beside(echo).goal("< 30 ms");
    if conformance.is_some() {
        report.add("exec to registration, conformance", "ms", median(large)).beside(echo);
    }
}

async fn start_ms(scheduler: &mut Scheduler, program: Program<'_>) -> f64 {
    Peer::start(scheduler, program).await.registered_after.as_secs_f64() * 1e3
}

async fn idle(report: &mut Report, scheduler: &mut Scheduler, worker: &Path, conformance: Option<&Path>) {
    let echo = idle_mib(scheduler, Program::Echo).await;
    let resident = idle_mib(scheduler, Program::Worker(worker)).await;
    report.add("resident, idle", "MiB", resident).beside(echo).goal("< 12 MiB");
    if let Some(conformance) = conformance {
        let resident = idle_mib(scheduler, Program::Worker(conformance)).await;
        report.add("resident, idle, conformance", "MiB", resident).beside(echo);
    }
}

async fn idle_mib(scheduler: &mut Scheduler, program: Program<'_>) -> f64 {
    let peer = Peer::start(scheduler, program).await;
    tokio::time::sleep(SETTLE).await;
    mib(peer.resident().current)
}

async fn no_op(report: &mut Report, scheduler: &mut Scheduler, worker: &Path) {
    let mut echo = Peer::start(scheduler, Program::Echo).await;
    let mut plain = Peer::start(scheduler, Program::Worker(worker)).await;
    let mut quiet = Peer::start(scheduler, Program::QuietWorker(worker)).await;
    for in_flight in [1, 64, 1_000] {
        let (mut raw, mut logged, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        let before = [&echo, &plain, &quiet].map(Peer::cpu);
        for _ in 0..ROUNDS {
            raw.push(no_ops(&mut echo, in_flight, WINDOW).await);
            logged.push(no_ops(&mut plain, in_flight, WINDOW).await);
            silent.push(no_ops(&mut quiet, in_flight, WINDOW).await);
        }
        let rate = |rounds: &[Measured]| median(rounds.iter().map(Measured::per_second).collect());
        let line = report.add(format!("no-op runs, {in_flight} in flight"), "/s", rate(&logged));
        line.beside(rate(&raw)).goal(if in_flight == 64 { "≥ 0.5 of the echo" } else { "" });
        let what = format!("no-op runs, {in_flight} in flight, RUST_LOG=warn");
        report.add(what, "/s", rate(&silent)).beside(rate(&raw));
        let cpu = [&echo, &plain, &quiet].map(Peer::cpu);
        let rounds = [&raw, &logged, &silent];
        let [raw_cpu, logged_cpu, silent_cpu] = std::array::from_fn(|peer| {
            let runs = rounds[peer].iter().map(Measured::runs).sum::<usize>();
            (cpu[peer] - before[peer]).as_secs_f64() * 1e6 / runs as f64
        });
        report.add(format!("CPU a run, {in_flight} in flight"), "µs", logged_cpu).beside(raw_cpu);
        let what = format!("CPU a run, {in_flight} in flight, RUST_LOG=warn");
        report.add(what, "µs", silent_cpu).beside(raw_cpu);
        if in_flight == 1 {
            latency(report, &raw, &logged);
        }
    }
    loaded(report, scheduler, worker).await;
}

fn latency(report: &mut Report, raw: &[Measured], worker: &[Measured]) {
    for (name, share, goal) in [("p50", 0.5, "< 100 µs"), ("p99", 0.99, "")] {
        let at = |rounds: &[Measured]| median(rounds.iter().map(|round| round.percentile(share)).collect());
        let (echo, worker) = (at(raw), at(worker));
        report.add(format!("{name} latency, 1 in flight"), "µs", worker).beside(echo);
        report.add(format!("{name} latency added to the echo's"), "µs", worker - echo).goal(goal);
    }
}

/// Memory under load, from a scheduler that acknowledges: from one that does not, results are kept for their retention.
async fn loaded(report: &mut Report, scheduler: &mut Scheduler, worker: &Path) {
    let mut peer = Peer::start(scheduler, Program::Worker(worker)).await;
    let load = Load { in_flight: 64, until: Until::Elapsed(WINDOW * 2), acknowledge: true };
    let measured = drive(&mut peer.link, load, "echo", &INPUT).await;
    report.add("no-op runs, 64 in flight, acknowledged", "/s", measured.per_second());
    report.add("resident, 64 in flight, acknowledged", "MiB", mib(peer.resident().current));
}

async fn no_ops(peer: &mut Peer, in_flight: usize, window: Duration) -> Measured {
    let load = Load { in_flight, until: Until::Elapsed(window), acknowledge: false };
    drive(&mut peer.link, load, "echo", &INPUT).await
}

/// Ten thousand runs that wait at once, beside as many messages of the echo and the nap itself.
async fn sleepers(report: &mut Report, scheduler: &mut Scheduler, worker: &Path) {
    let (mut raw, mut slept, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let input = Sleep { ms: NAP.as_millis() as u64 };
    let load = Load { in_flight: SLEEPERS, until: Until::Runs(SLEEPERS), acknowledge: true };
    for _ in 0..ROUNDS {
        let mut echo = Peer::start(scheduler, Program::Echo).await;
        let all = Load { acknowledge: false, ..load };
        raw.push((drive(&mut echo.link, all, "sleep", &input).await.elapsed + NAP).as_secs_f64() * 1e3);
        let mut peer = Peer::start(scheduler, Program::Worker(worker)).await;
        slept.push(drive(&mut peer.link, load, "sleep", &input).await.elapsed.as_secs_f64() * 1e3);
        peaks.push(mib(peer.resident().peak));
    }
    report.add("10,000 runs of 1 s at once, until the last result", "ms", median(slept)).beside(median(raw));
    report.add("resident at most, 10,000 runs at once", "MiB", median(peaks));
}

/// Results beside a run that floods the stream with progress, and without it.
async fn flood(report: &mut Report, scheduler: &mut Scheduler, worker: &Path) {
    let (mut calm, mut flooded, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let load = Load { in_flight: 64, until: Until::Runs(BESIDE_FLOOD), acknowledge: true };
    for _ in 0..ROUNDS {
        let mut peer = Peer::start(scheduler, Program::Worker(worker)).await;
        calm.push(drive(&mut peer.link, load, "echo", &INPUT).await.elapsed.as_secs_f64() * 1e3);
        start_aside(&peer.link, "aside", "flood", &Flood { events: FLOOD }).await;
        flooded.push(drive(&mut peer.link, load, "echo", &INPUT).await.elapsed.as_secs_f64() * 1e3);
        peaks.push(mib(peer.resident().peak));
    }
    let what = "20,000 results beside 1,000,000 events (without)";
    report.add(what, "ms", median(flooded)).beside(median(calm));
    report.add("resident at most, beside 1,000,000 events", "MiB", median(peaks));
}

/// Heartbeats while every core, and every thread that serves async functions, spins in user code.
async fn heartbeats(report: &mut Report, scheduler: &mut Scheduler, worker: &Path) {
    let mut peer = Peer::start(scheduler, Program::Worker(worker)).await;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let input = Sleep { ms: SPIN.as_millis() as u64 };
    for core in 0..cores {
        start_aside(&peer.link, &format!("spin-{core}"), "spin", &input).await;
        start_aside(&peer.link, &format!("hog-{core}"), "hog", &input).await;
    }
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let mut results = 0;
    while results < cores * 2 {
        match peer.link.hear().await {
            Msg::WorkerRegistration(_) => {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            Msg::RunResult(_) => results += 1,
            _ => {}
        }
    }
    let what = "longest gap between heartbeats, every core spinning";
    report.add(what, "s", longest.as_secs_f64()).goal("< 11 s");
}

pub(crate) fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
