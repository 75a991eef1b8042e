//! Leaving: what is running is finished or handed back, and what is finished is delivered.

use std::time::Duration;

use gen_worker::{Call, CancelReason, Function, Worker, WorkerError};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, WorkerProcess, WorkerSettings};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use super::{CONFORMANCE, worker};

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// The run `r` is handed back to be tried elsewhere, and the worker leaves in peace.
async fn is_handed_back(worker: &mut WorkerProcess, mut stream: WorkerStream) {
    let result = stream.next_result().await;
    assert_eq!(
        (result.run_id.as_str(), result.error_type.as_str(), result.retryable),
        ("r", "retryable", true)
    );
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_run_that_finishes_while_draining_is_delivered() {
    let (_scheduler, mut worker, mut stream) = worker(&[("WORKER_DRAIN_TIMEOUT_SECONDS", "20")]).await;
    stream.run("r", "sleep", json!({"ms": 700})).await;
    stream.run("probe", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    worker.terminate().await;
    let draining = stream.next_registration().await;
    assert!(draining.resources.unwrap().available_functions.is_empty());
    stream.run("late", "echo", json!({"text": ""})).await;
    let late = stream.next_result().await;
    assert_eq!(
        (late.run_id.as_str(), late.safe_message.as_str(), late.retryable),
        ("late", "worker busy", true)
    );
    let result = stream.next_result().await;
    assert!(result.success && result.run_id == "r");
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn without_a_drain_time_runs_are_handed_back() {
    let (_scheduler, mut worker, mut stream) = worker(&[]).await;
    stream.run("r", "sleep", json!({"ms": 3_600_000})).await;
    stream.run("probe", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    worker.terminate().await;
    is_handed_back(&mut worker, stream).await;
}

#[tokio::test]
async fn a_second_signal_cancels_what_the_first_let_run() {
    let (_scheduler, mut worker, mut stream) = worker(&[("WORKER_DRAIN_TIMEOUT_SECONDS", "3600")]).await;
    stream.run("r", "sleep", json!({"ms": 3_600_000})).await;
    stream.run("probe", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    worker.terminate().await;
    stream.next_registration().await;
    worker.terminate().await;
    assert_eq!(stream.next_result().await.error_type, "retryable");
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_drain_command_is_a_drain() {
    let (_scheduler, mut worker, mut stream) = worker(&[]).await;
    stream.send(Msg::DrainCmd(v1::DrainCommand { deadline_ms: 0, reason: "upgrade".into() })).await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_signal_during_an_outage_ends_the_worker() {
    let (mut scheduler, mut worker, stream) = worker(&[("RECONNECT_DELAY", "3600")]).await;
    scheduler.stop().await;
    drop(stream);
    worker.terminate().await;
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn no_run_starts_after_drain_begins() {
    let scheduler = FakeScheduler::start().await;
    let mut worker =
        WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_DRAIN_TIMEOUT_SECONDS", "20").start();
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    stream.run("holds the drain open", "sleep", json!({"ms": 1_000})).await;
    stream.run("probe", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    worker.terminate().await;
    stream.next_registration().await;
    for n in 0..20 {
        stream.run(&format!("late {n}"), "echo", json!({"text": ""})).await;
        assert!(!stream.next_result().await.success);
    }
    assert!(stream.next_result().await.success);
    stream.ended().await.unwrap();
    stream.end_ok();
    worker.ended().await;
}

#[tokio::test]
async fn a_drain_commands_deadline_is_kept() {
    let (_scheduler, mut worker, mut stream) = worker(&[("WORKER_DRAIN_TIMEOUT_SECONDS", "3600")]).await;
    stream.run("r", "sleep", json!({"ms": 3_600_000})).await;
    stream.send(Msg::DrainCmd(v1::DrainCommand { deadline_ms: 50, reason: "spot".into() })).await;
    is_handed_back(&mut worker, stream).await;
}

#[tokio::test]
async fn a_drain_command_without_a_deadline_waits_for_runs() {
    let (_scheduler, mut worker, mut stream) = worker(&[]).await;
    stream.run("r", "sleep", json!({"ms": 500})).await;
    stream.send(Msg::DrainCmd(v1::DrainCommand { deadline_ms: 0, reason: "upgrade".into() })).await;
    let result = stream.next_result().await;
    assert!(result.success && result.run_id == "r", "{result:?}");
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn an_interrupt_is_a_drain_as_a_termination_is() {
    let (_scheduler, mut worker, mut stream) = worker(&[]).await;
    worker.interrupt().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

/// Waits until every command sent so far was taken: they are taken in order.
async fn all_taken(stream: &mut WorkerStream) {
    stream.run("probe", "none", json!({})).await;
    while stream.next_result().await.run_id != "probe" {}
}

fn results(stream: &WorkerStream) -> impl Iterator<Item = &v1::TaskExecutionResult> {
    let results = stream.seen().iter().filter_map(|message| match &message.msg {
        Some(Msg::RunResult(result)) => Some(result),
        _ => None,
    });
    results.filter(|result| result.run_id != "probe")
}

#[tokio::test]
async fn every_run_has_one_result_whenever_the_signal_comes() {
    for signal_after in [0, 10, 20] {
        let (_scheduler, mut worker, mut stream) = worker(&[]).await;
        for n in 0..40 {
            stream.run(&n.to_string(), "sleep", json!({"ms": n * 3})).await;
        }
        all_taken(&mut stream).await;
        for _ in 0..signal_after {
            stream.next_result().await;
        }
        worker.terminate().await;
        stream.ended().await.unwrap();
        stream.end_ok();
        assert!(worker.ended().await.success());
        let sound = |result: &v1::TaskExecutionResult| result.success || result.error_type == "retryable";
        assert!(results(&stream).all(sound), "signal after {signal_after}");
        let mut runs: Vec<u64> = results(&stream).map(|result| result.run_id.parse().unwrap()).collect();
        runs.sort_unstable();
        assert_eq!(runs, Vec::from_iter(0..40), "signal after {signal_after}");
    }
}

/// More than every buffer on the way holds, and nobody reads until all of it is there and the worker is leaving.
#[tokio::test]
async fn a_scheduler_that_reads_slowly_gets_every_result_before_the_worker_leaves() {
    let (_scheduler, mut worker, mut stream) = worker(&[("WORKER_DRAIN_TIMEOUT_SECONDS", "3600")]).await;
    for n in 0..24 {
        stream.run(&n.to_string(), "raw", json!({"size": 1 << 20})).await;
    }
    all_taken(&mut stream).await;
    worker.terminate().await;
    let all_ended = async {
        while worker.log().matches(r#""message":"succeeded""#).count() < 24 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_ended).await.expect("every run ends");
    stream.ended().await.unwrap();
    let whole = |result: &&v1::TaskExecutionResult| result.success && result.output_payload.len() > 1 << 20;
    assert_eq!(results(&stream).filter(whole).count(), 24);
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_scheduler_that_does_not_end_the_stream_is_left() {
    let (_scheduler, mut worker, mut stream) = worker(&[]).await;
    worker.terminate().await;
    stream.ended().await.unwrap();
    assert!(worker.ended().await.success());
    assert!(worker.log().contains("the scheduler did not end the stream"), "{}", worker.log());
}

#[tokio::test]
async fn a_worker_that_leaves_with_results_nobody_took_says_so() {
    let (mut scheduler, mut worker, mut stream) = worker(&[]).await;
    stream.run("r", "sleep", json!({"ms": 100})).await;
    stream.run("probe", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    scheduler.stop().await;
    drop(stream);
    worker.terminate().await;
    assert_eq!(worker.ended().await.code(), Some(8));
    assert!(worker.log().contains("left with results that no scheduler took"), "{}", worker.log());
}

#[tokio::test]
async fn what_runs_is_told_that_the_worker_leaves() {
    let scheduler = FakeScheduler::start().await;
    let (told, mut hears) = mpsc::channel(1);
    let waits = Function::builder::<Value>("waits", "tests")
        .asynchronous(move |call: Call<Value>| {
            let told = told.clone();
            async move {
                // A run that is told before its function begins is given up.
                told.send(None).await.expect("the test listens");
                let reason = call.context.canceled().await;
                told.send(Some(reason)).await.expect("the test listens");
                Ok::<_, WorkerError>(())
            }
        })
        .unwrap();
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let worker = Embedded::start(Worker::builder(settings).function(waits));
    let mut stream = scheduler.accept().await;
    stream.run("r", "waits", json!({})).await;
    assert_eq!(timeout(PATIENCE, hears.recv()).await.unwrap(), Some(None));
    worker.shutdown().drain();
    assert_eq!(timeout(PATIENCE, hears.recv()).await.unwrap(), Some(Some(CancelReason::Drain)));
    let result = stream.next_result().await;
    assert!(result.success && result.run_id == "r", "a worker that leaves takes what is finished with it");
    worker.leave(stream).await;
}
