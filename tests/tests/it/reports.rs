//! What a run leaves behind that failed by a fault.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::{Value, json};

use super::CONFORMANCE;

const WRITTEN: &str = "a failure was written down";

async fn worker(settings: &[(&str, &str)]) -> (FakeScheduler, WorkerProcess, WorkerStream) {
    let scheduler = FakeScheduler::start().await;
    let worker = WorkerSettings::new(CONFORMANCE, &scheduler);
    let state = worker.directory().join("state").to_str().unwrap().to_owned();
    let worker =
        settings.iter().fold(worker.set("WORKER_STATE_DIR", state), |w, (name, value)| w.set(name, *value));
    let process = worker.start();
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    (scheduler, process, stream)
}

async fn fail(stream: &mut WorkerStream, run_id: &str, kind: &str, message: &str) {
    stream.run(run_id, "fail", json!({"kind": kind, "message": message})).await;
    assert!(!stream.next_result().await.success);
}

/// The reports that there are, the oldest first.
fn reports(worker: &WorkerProcess) -> Vec<(PathBuf, Value)> {
    let entries = fs::read_dir(worker.directory().join("state/reports")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read(&path).unwrap();
        assert!(text.len() < 64 << 10);
        (path, serde_json::from_slice(&text).unwrap())
    };
    paths.into_iter().map(read).collect()
}

#[tokio::test]
async fn a_fault_leaves_a_report() {
    let (_scheduler, process, mut stream) = worker(&[("WORKER_ID", "w1"), ("RUST_LOG", "info")]).await;
    fail(&mut stream, "other", "validation", "no").await;
    fail(&mut stream, "r1", "panic", "GET https://h/x?sig=hunter2 for token=hunter2").await;
    process.says(WRITTEN).await;
    let log = process.log();
    let told = log.lines().find(|line| line.contains(WRITTEN)).unwrap();
    let told: Value = serde_json::from_str(told).unwrap();
    let run = json!({"name": "job", "run_id": "r1", "function": "fail", "attempt": 0});
    assert_eq!(told["spans"], json!([run]), "{told}");
    let all = reports(&process);
    let [(path, report)] = &all[..] else { panic!("one report: {all:?}") };
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    for (pointer, expected) in [
        ("/format", json!(1)),
        ("/run_id", json!("r1")),
        ("/function", json!("fail")),
        ("/attempt", json!(0)),
        ("/kind", json!("internal")),
        ("/stage", json!("run")),
        ("/safe_message", json!("internal error")),
        ("/panic/message", json!("GET <url> for token=<redacted>")),
        ("/worker/id", json!("w1")),
        ("/worker/version", json!(env!("CARGO_PKG_VERSION"))),
        ("/models", json!([])),
        ("/leases", json!([])),
        ("/left_out", json!(0)),
    ] {
        assert_eq!(report.pointer(pointer), Some(&expected), "{pointer} in {report}");
    }
    let text = |pointer: &str| report.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    assert!(text("/message").starts_with("InternalError: the function panicked: GET <url>"), "{report}");
    assert!(text("/panic/location").contains("runs.rs:"), "{report}");
    let frames = report["panic"]["frames"].as_array().unwrap();
    assert!(frames.iter().any(|frame| frame.as_str().unwrap().contains("fail")), "{report}");
    for number in ["/at_unix_ms", "/elapsed_ms", "/memory/process", "/memory/machine"] {
        assert!(
            report.pointer(number).and_then(Value::as_f64).is_some_and(|n| n > 0.0),
            "{number} in {report}"
        );
    }
    let lines: Vec<&str> = report["lines"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    // The line of the run itself waits for its delivery.
    let panicked = lines.iter().find(|line| line.contains(r#""message":"panicked""#)).unwrap();
    assert!(panicked.contains(r#""said":"GET <url>"#), "{panicked}");
    assert!(!report.to_string().contains("hunter2") && !process.log().contains("hunter2"));
}

#[tokio::test]
async fn the_oldest_report_goes_and_none_is_left_where_none_is_wanted() {
    let (_scheduler, process, mut stream) = worker(&[("WORKER_FAILURE_REPORTS", "2")]).await;
    for (run_id, kind) in [("r1", "internal"), ("r2", "fatal"), ("r3", "internal")] {
        fail(&mut stream, run_id, kind, "oh").await;
        // One after the other, so that it is known which is the oldest.
        process.says(&format!("-{run_id}-")).await;
    }
    let left: Vec<Value> = reports(&process).into_iter().map(|(_, report)| report).collect();
    assert_eq!([&left[0]["run_id"], &left[1]["run_id"]], [&json!("r2"), &json!("r3")]);
    assert_eq!(left.len(), 2);
    // An error that was returned has a stage, too.
    assert!(left.iter().all(|report| report["stage"] == "run"), "{left:?}");

    let (_scheduler, process, mut stream) = worker(&[("WORKER_FAILURE_REPORTS", "0")]).await;
    fail(&mut stream, "r1", "internal", "oh").await;
    process.terminate().await;
    stream.ended().await.unwrap();
    assert!(!process.directory().join("state/reports").exists());
}
