//! Leaving: what is running is finished or handed back, and what is finished is delivered.

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::WorkerSettings;
use serde_json::json;

use super::{CONFORMANCE, worker};

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
