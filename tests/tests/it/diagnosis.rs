//! What a worker says of itself in its log.

use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::{Value, json};

use super::{
    CONFORMANCE,
    models::{MODEL, hub_and_worker},
    status::get,
    worker,
};

/// The line with this message.
#[track_caller]
fn line(worker: &WorkerProcess, message: &str) -> Value {
    let lines = worker.log();
    let mut lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.rfind(|line| line["message"] == message).expect("it was logged")
}

/// A field that holds JSON.
fn field(line: &Value, name: &str) -> Value {
    serde_json::from_str(line[name].as_str().unwrap()).unwrap()
}

#[tokio::test]
async fn a_snapshot_shows_what_every_run_is_doing() {
    let (scheduler, process, mut stream) = worker(&[]).await;
    stream.run("1", "echo", json!({"text": "a"})).await;
    stream.next_result().await;
    stream.drop_connection();
    stream = scheduler.accept().await;
    stream.next_registration().await;
    stream.run("2", "progress", json!({"steps": 1_000_000, "delay_ms": 10})).await;
    stream.wait_for("progress", |message| format!("{message:?}").contains("progress").then_some(())).await;
    process.ask().await;
    process.says(r#""message":"snapshot""#).await;
    let snapshot = line(&process, "snapshot");
    let runs = field(&snapshot, "runs");
    let [run] = &runs.as_array().unwrap()[..] else { panic!("one run: {runs}") };
    for (name, expected) in [
        ("run_id", json!("2")),
        ("attempt", json!(0)),
        ("function", json!("progress")),
        ("stage", json!("run")),
        ("state", json!("running")),
    ] {
        assert_eq!(run[name], expected, "{run}");
    }
    assert!(run["age_ms"].is_u64(), "{run}");
    for (name, expected) in [
        ("phase", json!("Running")),
        ("is_connected", json!(true)),
        ("in_flight", json!(1)),
        ("permits", json!(1)),
        ("runs_left_out", json!(0)),
        ("outbox_results", json!(1)),
        ("outbox_acknowledged", json!(false)),
        ("result_retention_ms", json!(60_000)),
    ] {
        assert_eq!(snapshot[name], expected, "{name} in {snapshot}");
    }
    assert_eq!(field(&snapshot, "reconnects")[0]["cause"], "lost");
    assert_eq!((field(&snapshot, "leases"), field(&snapshot, "downloads")), (json!([]), json!([])));
    assert!(snapshot["tasks"].as_u64() >= Some(1), "{snapshot}");
}

#[tokio::test]
async fn a_snapshot_shows_what_is_downloaded() {
    let (hub, _scheduler, process, mut stream) = hub_and_worker(&[]).await;
    let held = hub.hold("/acme/double.onnx");
    stream.run("1", "infer", json!({"model_ref": MODEL, "values": [1.0]})).await;
    held.asked().await;
    process.ask().await;
    process.says(r#""message":"snapshot""#).await;
    let downloads = field(&line(&process, "snapshot"), "downloads");
    assert_eq!(
        downloads,
        json!([{"model": "cozy:acme/double.onnx:latest", "bytes_done": 0, "bytes_total": null}])
    );
    drop(held);
    assert!(stream.next_result().await.success);
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
async fn a_line_within_a_run_says_once_which() {
    let (_scheduler, process, mut stream) = worker(&[("RUST_LOG", "info,gen_worker=debug")]).await;
    stream.run("r-1", "echo", json!({"text": "a"})).await;
    process.says(r#""message":"succeeded""#).await;
    let succeeded = line(&process, "succeeded");
    let run = json!({"name": "job", "run_id": "r-1", "function": "echo", "attempt": 0});
    assert_eq!(succeeded["spans"], json!([run]), "{succeeded}");
    assert_eq!(succeeded.to_string().matches("r-1").count(), 1, "{succeeded}");
}

/// The one line of a run that has ended.
#[track_caller]
fn last_line(worker: &WorkerProcess, run_id: &str) -> Value {
    let log = worker.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut lines = lines.filter(|line| line["outcome"].is_string() && line["spans"][0]["run_id"] == run_id);
    let line = lines.next().expect("it was logged");
    assert!(lines.next().is_none(), "a run has one line");
    line
}

#[tokio::test]
async fn a_run_that_ended_says_in_one_line_where_its_time_went() {
    let (_hub, _scheduler, process, mut stream) =
        hub_and_worker(&[("WORKER_LOG_DELIVERY_SECONDS", "3600")]).await;
    let said =
        |run_id: &str| format!(r#""message":"{}"#, if run_id == "bad" { "failed" } else { "succeeded" });

    // Written is delivered where nobody acknowledges.
    stream.run("written", "infer", json!({"model_ref": MODEL, "values": [1.0]})).await;
    let result = stream.next_result().await;
    process.says(&said("written")).await;
    let line = last_line(&process, "written");
    for stage in ["elapsed", "queue", "fetch", "lease", "run", "store", "deliver"] {
        assert!(line[format!("{stage}_ms")].is_u64(), "{stage} in {line}");
    }
    assert_eq!((&line["outcome"], &line["error"]), (&json!("success"), &Value::Null), "{line}");
    assert_eq!(line["bytes"], result.output_payload.len(), "{line}");

    // A failure says where and why, and waits for its acknowledgement.
    stream.hello(&["result-ack"]).await;
    stream.run("bad", "fail", json!({"kind": "validation", "message": "no"})).await;
    let result = stream.next_result().await;
    assert!(!process.log().contains(&said("bad")));
    stream.ack(&result).await;
    process.says(&said("bad")).await;
    let line = last_line(&process, "bad");
    assert!(line["deliver_ms"].is_u64(), "{line}");
    assert_eq!((&line["fetch_ms"], &line["bytes"], &line["stage"]), (&json!(0), &json!(0), &json!("run")));
    assert_eq!((&line["outcome"], &line["level"]), (&json!("validation"), &json!("WARN")), "{line}");
    assert!(line["error"].as_str().is_some_and(|error| error.contains("no")), "{line}");
}

#[tokio::test]
async fn a_run_whose_result_nobody_acknowledges_has_its_line_all_the_same() {
    for patience in ["0.01", "0"] {
        let (_scheduler, process, mut stream) = worker(&[("WORKER_LOG_DELIVERY_SECONDS", patience)]).await;
        stream.hello(&["result-ack"]).await;
        stream.run("parked", "echo", json!({"text": "a"})).await;
        stream.next_result().await;
        process.says(r#""message":"succeeded""#).await;
        let line = last_line(&process, "parked");
        assert!(line["run_ms"].is_u64() && line["deliver_ms"].is_null(), "{line}");
        process.ask().await;
        process.says(r#""message":"snapshot""#).await;
        let snapshot = self::line(&process, "snapshot");
        assert_eq!(
            (&snapshot["outbox_acknowledged"], &snapshot["outbox_results"]),
            (&json!(true), &json!(1))
        );
    }
}

/// Runs that fail, each with a line of 4 KiB.
async fn fail_loudly(stream: &mut WorkerStream, runs: u32) {
    let message = "x".repeat(4 << 10);
    for run in 0..runs {
        stream.run(&run.to_string(), "fail", json!({"kind": "validation", "message": message})).await;
        let result = stream.next_result().await;
        assert_eq!((result.run_id, result.success), (run.to_string(), false));
    }
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let scheduler = FakeScheduler::start().await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_HTTP_ADDR", address.to_string());
    let mut process = settings.leave_log().start();
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    // More than the pipe and the worker's MiB take.
    fail_loudly(&mut stream, 400).await;
    assert!(stream.next_registration().await.is_heartbeat);
    assert_eq!(get(address, "/livez").await.0, 200);
    let (_, metrics) = get(address, "/metrics").await;
    assert!(!metrics.contains("gen_worker_log_lines_dropped_total 0\n"), "the log was full: {metrics}");
    assert!(metrics.contains("gen_worker_log_lines_dropped_total "), "{metrics}");
    // Who comes late hears the first lines, the last, and how many are missing between.
    process.read_log();
    process.says("lines of the log were dropped").await;
    assert!(line(&process, "lines of the log were dropped: stderr takes them too slowly")["lines"].is_u64());
    line(&process, "starting");
    process.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(process.ended().await.success());
}

#[tokio::test]
async fn a_worker_whose_log_nobody_reads_leaves_all_the_same() {
    let scheduler = FakeScheduler::start().await;
    let mut process = WorkerSettings::new(CONFORMANCE, &scheduler).leave_log().start();
    let mut stream = scheduler.accept().await;
    // More than the pipe takes.
    fail_loudly(&mut stream, 50).await;
    process.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(process.ended().await.success());
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
