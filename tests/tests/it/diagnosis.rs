//! What a worker says of itself in its log.

use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::Value;

use super::{CONFORMANCE, worker};

/// The line with this message.
#[track_caller]
fn line(worker: &WorkerProcess, message: &str) -> Value {
    let lines = worker.log();
    let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.rfind(|line| line["message"] == message).expect("it was logged")
}

#[tokio::test]
async fn a_start_says_where_its_time_went() {
    let (_scheduler, process, _stream) = worker(&[]).await;
    let starting = line(&process, "starting");
    for phase in ["settings_ms", "assemble_ms", "build_ms"] {
        assert!(starting[phase].is_u64(), "{starting}");
    }
}

#[tokio::test]
async fn lines_have_the_form_that_was_asked_for() {
    let scheduler = FakeScheduler::start().await;
    let text = WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_LOG_FORMAT", "text").start();
    text.says("starting").await;
    // No colours where there is no terminal.
    assert!(!text.log().contains('\u{1b}') && !text.log().contains("{\""), "{}", text.log());
    let json = WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_LOG_FORMAT", "json").start();
    json.says("starting").await;
    assert!(json.log().lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", json.log());
    let mut wrong = WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_LOG_FORMAT", "xml").start();
    assert_eq!(wrong.ended().await.code(), Some(2));
    let remedy = "WORKER_LOG_FORMAT is `xml`: expected `text` or `json`";
    assert!(wrong.log().contains(remedy), "{}", wrong.log());
}
