//! Runs and their results (contract §3.1–3.6, §5).

use gen_worker_proto::scheduler::{self as v1, TaskExecutionResult, worker_scheduler_message::Msg};
use gen_worker_testkit::WorkerStream;
use gen_worker_tests::unpack;
use serde_json::{Value, json};

use super::worker;

async fn result_of(stream: &mut WorkerStream, function: &str, payload: Value) -> TaskExecutionResult {
    stream.run("r", function, payload).await;
    stream.next_result().await
}

/// `error_type`, `retryable`, `safe_message`, `error_message`.
fn failure(result: &TaskExecutionResult) -> (&str, bool, &str, &str) {
    assert!(!result.success && result.output_payload.is_empty(), "{result:?}");
    (&result.error_type, result.retryable, &result.safe_message, &result.error_message)
}

fn request(function: &str, input_payload: &[u8]) -> v1::TaskExecutionRequest {
    v1::TaskExecutionRequest {
        run_id: "r".into(),
        function_name: function.into(),
        input_payload: input_payload.to_vec().into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_run_succeeds_with_its_output_and_nothing_else() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let result = result_of(&mut stream, "echo", json!({"text": "hällo"})).await;
    assert!(result.success && result.error_type.is_empty() && result.error_message.is_empty());
    assert_eq!(unpack::<Value>(&result.output_payload), json!({"text": "hällo"}));
}

#[tokio::test]
async fn what_does_not_fit_the_payloads_type_is_refused_by_name() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let result = result_of(&mut stream, "sleep", json!({"ms": "soon"})).await;
    let (kind, retryable, safe, _) = failure(&result);
    assert_eq!((kind, retryable), ("validation", false));
    assert!(safe.contains("$.ms"), "{safe}");
    let result = result_of(&mut stream, "echo", json!({})).await;
    assert!(failure(&result).2.contains("`text`"));
    for (bytes, words) in [(&[][..], "MessagePack"), (&[0x91, 1], "map"), (&[0x80, 0], "follow")] {
        stream.send(Msg::RunRequest(request("echo", bytes))).await;
        let result = stream.next_result().await;
        let (kind, _, safe, _) = failure(&result);
        assert!(kind == "validation" && safe.contains(words), "{safe}");
    }
}

#[tokio::test]
async fn admission_refuses_in_the_contracts_words() {
    let settings = [("WORKER_MAX_CONCURRENCY", "2"), ("WORKER_MAX_INPUT_BYTES", "64")];
    let (_scheduler, _worker, mut stream) = worker(&settings).await;
    let unknown = result_of(&mut stream, "nope", json!({})).await;
    let expected = ("internal", false, "internal error", "Unknown function requested: nope");
    assert_eq!(failure(&unknown), expected);
    let large = result_of(&mut stream, "echo", json!({"text": "x".repeat(100)})).await;
    let (kind, _, safe, message) = failure(&large);
    assert_eq!((kind, safe), ("validation", "invalid input"));
    assert_eq!(message, "Input payload too large: 108 bytes (max 64)");
    stream.run("1", "limited", json!({"ms": 60_000})).await;
    let busy = result_of(&mut stream, "limited", json!({"ms": 0})).await;
    let expected = ("retryable", true, "worker busy", "Function concurrency limit reached for limited (1).");
    assert_eq!(failure(&busy), expected);
    stream.run("2", "sleep", json!({"ms": 60_000})).await;
    let full = result_of(&mut stream, "echo", json!({"text": ""})).await;
    assert_eq!(failure(&full).3, "Worker concurrency limit reached (2).");
}

#[tokio::test]
async fn every_kind_of_failure_is_reported_as_the_contract_says() {
    let (_scheduler, worker, mut stream) = worker(&[]).await;
    for (kind, retryable, safe) in [
        ("validation", false, "use <path>"),
        ("retryable", true, "use <path>"),
        ("resource", false, "use <path>"),
        ("auth", false, "use <path>"),
        ("fatal", false, "use <path>"),
        ("canceled", false, "canceled"),
        ("internal", false, "internal error"),
    ] {
        let result = result_of(&mut stream, "fail", json!({"kind": kind, "message": "use /etc/hosts"})).await;
        let (error_type, is_retryable, safe_message, error_message) = failure(&result);
        assert_eq!((error_type, is_retryable, safe_message), (kind, retryable, safe));
        assert!(error_message.ends_with(&format!("Error: {safe}")), "{error_message}");
    }
    let result = result_of(&mut stream, "fail", json!({"kind": "panic", "message": "at the disco"})).await;
    assert_eq!(failure(&result).0, "internal");
    let result = result_of(&mut stream, "echo", json!({"text": "still here"})).await;
    assert!(result.success, "the process lives on; it logged\n{}", worker.log());
}

#[tokio::test]
async fn progress_and_logs_arrive_in_order_before_the_result() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let result = result_of(&mut stream, "progress", json!({"steps": 3})).await;
    assert_eq!(unpack::<Value>(&result.output_payload), json!({"steps": 3}));
    let mut events = stream.events("r");
    // A run that took 10 ms says where they went, and so may this one.
    events.retain(|event| event.event_type != "job.timings");
    let payload = |at: usize| serde_json::from_slice::<Value>(&events[at].payload_json).unwrap();
    let types: Vec<&str> = events.iter().map(|event| event.event_type.as_str()).collect();
    assert_eq!(types, ["job.progress", "job.log", "job.progress", "job.log", "job.progress", "job.log"]);
    assert_eq!((&payload(2)["stage"], payload(4)["progress"].as_f64()), (&json!("step 2"), Some(1.0)));
    assert!(payload(0)["timestamp"].is_f64());
}

#[tokio::test]
async fn a_run_says_where_its_time_went() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    assert!(result_of(&mut stream, "sleep", json!({"ms": 20})).await.success);
    let events = stream.events("r");
    let [.., last] = &events[..] else { panic!("it took long enough to be told") };
    let timings: Value = serde_json::from_slice(&last.payload_json).unwrap();
    assert_eq!(last.event_type, "job.timings");
    assert!(
        timings["run_ms"].as_f64() >= Some(20.0) && timings["total_ms"].as_f64() >= Some(20.0),
        "{timings}"
    );
}

#[tokio::test]
async fn incremental_output_ends_with_completed_and_an_empty_result() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let result = result_of(&mut stream, "count", json!({"n": 3})).await;
    assert!(result.success && result.output_payload.is_empty());
    assert_eq!(
        output_events(&stream),
        [
            ("output.delta", r#"{"i":0}"#),
            ("output.delta", r#"{"i":1}"#),
            ("output.delta", r#"{"i":2}"#),
            ("output.completed", "{}"),
        ]
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
}

#[tokio::test]
async fn incremental_output_that_fails_says_so_in_both_places() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let result = result_of(&mut stream, "count", json!({"n": 3, "fail_at": 1})).await;
    assert_eq!(failure(&result).0, "retryable");
    let error = r#"{"error_type":"retryable","message":"failing at 1"}"#;
    assert_eq!(output_events(&stream)[1..], [("output.error".to_owned(), error.to_owned())]);
}

#[tokio::test]
async fn deltas_keep_their_limits() {
    let settings = [("WORKER_MAX_OUTPUT_DELTA_BYTES", "7"), ("WORKER_MAX_OUTPUT_DELTA_EVENTS", "11")];
    let (_scheduler, _worker, mut stream) = worker(&settings).await;
    assert!(result_of(&mut stream, "count", json!({"n": 100})).await.success);
    let events = output_events(&stream);
    assert_eq!(events.len(), 12, "eleven deltas and the end");
    assert_eq!((events[9].1.as_str(), events[10].1.as_str()), (r#"{"i":9}"#, r#"{"truncated":true}"#));
}

/// The event buffer is far smaller than the stream of deltas: none may be lost, whatever waits.
#[tokio::test]
async fn no_delta_is_dropped() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_EVENT_BUFFER", "4")]).await;
    assert!(result_of(&mut stream, "count", json!({"n": 5000})).await.success);
    assert_eq!(output_events(&stream).len(), 5001);
}

fn output_events(stream: &WorkerStream) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let events = stream.events("r").into_iter().filter(|event| event.event_type.starts_with("output."));
    events.map(|event| (event.event_type.clone(), text(&event.payload_json))).collect()
}

#[tokio::test]
async fn the_context_says_whose_run_it_is() {
    let (_scheduler, _worker, mut stream) = worker(&[("TENANT_ID", "home")]).await;
    let identified = v1::TaskExecutionRequest {
        tenant_id: "t".into(),
        user_id: "u".into(),
        timeout_ms: 60_000,
        attempt: 3,
        ..request("whoami", &[0x80])
    };
    stream.send(Msg::RunRequest(identified)).await;
    let who: Value = unpack(&stream.next_result().await.output_payload);
    assert_eq!((&who["run_id"], &who["tenant_id"], &who["user_id"]), (&json!("r"), &json!("t"), &json!("u")));
    assert_eq!(who["attempt"], 3);
    assert!(who["deadline_ms"].as_u64().unwrap() > 1_700_000_000_000);
    let who: Value = unpack(&result_of(&mut stream, "whoami", json!({})).await.output_payload);
    assert_eq!(
        (&who["tenant_id"], &who["user_id"], &who["deadline_ms"]),
        (&json!("home"), &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn raw_output_without_a_target_comes_back_inline() {
    #[derive(serde::Deserialize)]
    struct Inline {
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
        content_type: String,
        size_bytes: u64,
        sha256: String,
    }
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_OUTPUT_BYTES", "1000")]).await;
    let result = result_of(&mut stream, "raw", json!({"size": 300, "content_type": "image/x"})).await;
    let inline: Inline = unpack(&result.output_payload);
    let pattern: Vec<u8> = (0..300).map(|i| (i % 251) as u8).collect();
    assert_eq!((inline.data, inline.content_type.as_str(), inline.size_bytes), (pattern, "image/x", 300));
    assert_eq!(inline.sha256.len(), 64);
    let large = result_of(&mut stream, "raw", json!({"size": 3000})).await;
    let (kind, _, safe, _) = failure(&large);
    assert!(kind == "validation" && safe.starts_with("Output payload too large: "), "{safe}");
}

#[tokio::test]
async fn a_payload_above_the_usual_message_limit_is_taken() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let text = "x".repeat(6 << 20);
    let result = result_of(&mut stream, "echo", json!({"text": text})).await;
    assert!(result.success && result.output_payload.len() > 6 << 20);
}

#[tokio::test]
async fn unknown_messages_are_ignored() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    stream.send_unknown().await;
    stream.send(Msg::SpawnTasks(v1::SpawnTasksRequest::default())).await;
    stream.send(Msg::RunRequest(v1::TaskExecutionRequest::default())).await;
    stream.send(Msg::TokenRefresh(v1::TokenRefresh::default())).await;
    stream.send(Msg::RealtimeFrame(v1::RealtimeFrame::default())).await;
    assert!(result_of(&mut stream, "echo", json!({"text": "alive"})).await.success);
}

#[tokio::test]
async fn the_same_run_is_not_started_twice() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    stream.hello(&["run-accepted"]).await;
    stream.run("twice", "limited", json!({"ms": 300})).await;
    stream.run("twice", "limited", json!({"ms": 300})).await;
    stream.next_result().await;
    assert!(result_of(&mut stream, "echo", json!({"text": ""})).await.success);
    let seen = |pick: fn(&Msg) -> bool| {
        stream.seen().iter().filter_map(|m| m.msg.as_ref()).filter(|m| pick(m)).count()
    };
    assert_eq!(seen(|m| matches!(m, Msg::RunAccepted(a) if a.run_id == "twice")), 2);
    assert_eq!(seen(|m| matches!(m, Msg::RunResult(r) if r.run_id == "twice")), 1);
}

#[tokio::test]
async fn an_attempt_that_has_finished_is_answered_with_its_stored_result() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let attempt = |attempt| v1::TaskExecutionRequest { attempt, ..request("whoami", &[0x80]) };
    stream.send(Msg::RunRequest(attempt(1))).await;
    let first = stream.next_result().await;
    stream.send(Msg::RunRequest(attempt(1))).await;
    assert_eq!(stream.next_result().await, first);
    stream.send(Msg::RunRequest(attempt(2))).await;
    assert_eq!(stream.next_result().await.attempt, 2);
}

#[tokio::test]
async fn a_realtime_session_nobody_serves_is_closed() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let open = v1::RealtimeOpenCommand {
        session_id: "s".into(),
        function_name: "nope".into(),
        ..Default::default()
    };
    stream.send(Msg::RealtimeOpenCmd(open)).await;
    let close =
        stream.wait_for("a close", |m| if let Msg::RealtimeCloseCmd(c) = m { Some(c) } else { None }).await;
    assert_eq!((close.session_id.as_str(), close.reason.as_str()), ("s", "unknown_function"));
}

#[tokio::test]
async fn the_first_schedulers_read_errors_as_json() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_LEGACY_ERRORS", "1")]).await;
    let result = result_of(&mut stream, "fail", json!({"kind": "validation", "message": "say \"x\""})).await;
    let expected = r#"{"message": "ValidationError: say \"x\"", "retryable": false}"#;
    assert_eq!((result.error_message.as_str(), result.error_type.as_str()), (expected, "validation"));
    let result = result_of(&mut stream, "fail", json!({"kind": "canceled", "message": ""})).await;
    assert_eq!(
        result.error_message,
        r#"{"message": "Task was canceled during execution", "retryable": false}"#
    );
}

#[tokio::test]
async fn a_panic_is_one_line_with_where_it_happened() {
    let (_scheduler, worker, mut stream) = worker(&[]).await;
    result_of(&mut stream, "fail", json!({"kind": "panic", "message": "at the disco"})).await;
    let log = worker.log();
    let line =
        log.lines().find(|line| line.contains("at the disco")).unwrap_or_else(|| panic!("no line in\n{log}"));
    assert!(line.contains("runs.rs") && line.contains("\"run_id\":\"r\""), "{line}");
}

#[tokio::test]
async fn an_output_that_no_message_can_hold_is_a_refusal_that_says_so() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_MESSAGE_BYTES", "1")]).await;
    // The limit is raised to the least that holds what belongs around a payload.
    let result = result_of(&mut stream, "raw", json!({"size": 2 << 20})).await;
    let (kind, retryable, safe, _) = failure(&result);
    assert_eq!((kind, retryable), ("validation", false));
    assert!(safe.starts_with("Output payload too large: "), "{safe}");
    assert!(result_of(&mut stream, "echo", json!({"text": ""})).await.success);
}

#[tokio::test]
async fn what_a_caller_is_not_told_stands_in_the_workers_log() {
    let (_scheduler, worker, mut stream) = worker(&[]).await;
    let payload = json!({"kind": "internal", "message": "disk 7 is on fire"});
    let result = result_of(&mut stream, "fail", payload).await;
    assert_eq!(failure(&result).3, "InternalError: internal error");
    worker.says("disk 7 is on fire").await;
    let log = worker.log();
    let line = log.lines().find(|line| line.contains("disk 7 is on fire"));
    let line = line.unwrap_or_else(|| panic!("no line in\n{log}"));
    assert!(line.contains(r#""run_id":"r""#) && line.contains(r#""function":"fail""#), "{line}");
}
