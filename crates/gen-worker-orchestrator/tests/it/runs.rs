//! Runs, from the call to the result.

use std::time::Duration;

use gen_worker_core::Secret;
use gen_worker_net::{Method, StatusCode};
use gen_worker_orchestrator::{OrchestratorConfig, QueueStore, RunState, RunSubmission};
use gen_worker_proto::{
    frontend::{self, frontend_service_client::FrontendServiceClient},
    scheduler::{self as v1, worker_scheduler_message::Msg},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{ALL, Harness, Worker, registration};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_run_goes_to_a_worker_and_its_result_comes_back() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    assert!(
        matches!(worker.next().await, Msg::SchedulerHello(hello) if hello.features.contains(&"result-ack".into()))
    );
    let submission = RunSubmission {
        function: "f".to_owned(),
        payload: json!({"seed": u64::MAX, "scale": 1.0}),
        timeout_ms: Some(1500),
        tenant_id: Some("t".to_owned()),
        user_id: Some("u".to_owned()),
        ..Default::default()
    };
    let mut seen = Vec::new();
    let caller = harness.client.run(&submission, |event| {
        seen.push((event.event_type.clone(), String::from_utf8_lossy(&event.payload).into_owned()));
    });
    let script = async {
        let request = worker.run().await;
        worker.event(&request.run_id, "job.progress", r#"{"progress": 0.5}"#).await;
        worker.answer(&request, Ok(json!({"y": 2}))).await;
        request
    };
    let (view, request) = tokio::join!(caller, script);
    let view = view.unwrap();
    assert_eq!((view.state, view.attempt, view.output), (RunState::Succeeded, 1, Some(json!({"y": 2}))));
    assert_eq!(view.worker.as_deref(), Some("w"));
    assert_eq!(request.input_payload, rmp_serde::to_vec(&submission.payload).unwrap());
    assert_eq!((request.timeout_ms, request.attempt), (1500, 1));
    assert_eq!((&*request.tenant_id, &*request.user_id), ("t", "u"));
    assert_eq!(format!("{}/", request.file_base_url), harness.orchestrator.base_url().as_str());
    let types: Vec<_> = seen.iter().map(|(event_type, _)| event_type.as_str()).collect();
    assert_eq!(types, ["queued", "started", "job.progress"]);
    assert_eq!(seen[2].1, r#"{"progress": 0.5}"#);
    harness.orchestrator.stop().await;
}

#[tokio::test]
async fn an_acknowledged_result_is_stored() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    worker.answer(&request, Ok(json!(7))).await;
    let Msg::ResultAck(ack) = worker.next().await else { panic!("an acknowledgement") };
    assert_eq!((ack.run_id, ack.attempt), (run_id.clone(), 1));
    assert_eq!(harness.client.get(&run_id).await.unwrap().output, Some(json!(7)));
    worker.answer(&request, Err("fatal")).await;
    assert!(matches!(worker.next().await, Msg::ResultAck(_)));
    assert_eq!(harness.client.get(&run_id).await.unwrap().state, RunState::Succeeded);
}

#[tokio::test]
async fn a_worker_gets_no_more_than_it_takes() {
    let harness = Harness::start().await;
    let mut small = harness.worker(&[], 1).await;
    let first = harness.submit("f", None).await;
    let second = harness.submit("f", None).await;
    let request = small.run().await;
    assert_eq!(request.run_id, first);
    assert_eq!(harness.client.get(&second).await.unwrap().state, RunState::Queued);
    small.answer(&request, Ok(json!({}))).await;
    assert_eq!(small.run().await.run_id, second);
}

#[tokio::test]
async fn a_worker_without_extensions_sees_none() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&[], 1).await;
    let Msg::RunRequest(request) = worker.next().await else { panic!("the run comes first") };
    assert_eq!(request.attempt, 0);
    worker.answer(&request, Ok(json!({}))).await;
    let view = harness.client.follow(&run_id, |_| {}).await.unwrap();
    assert_eq!(view.state, RunState::Succeeded);
}

#[tokio::test]
async fn a_retryable_failure_is_tried_again_with_the_next_attempt() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&ALL, 1).await;
    let script = async {
        let request = worker.run().await;
        worker.answer(&request, Err("retryable")).await;
        let again = worker.run().await;
        worker.answer(&again, Err("validation")).await;
        (request.attempt, again.attempt)
    };
    let mut failed = Vec::new();
    let follow = harness.client.follow(&run_id, |event| {
        if event.event_type == "attempt_failed" {
            failed.push(serde_json::from_slice::<Value>(&event.payload).unwrap());
        }
    });
    let (attempts, view) = tokio::join!(script, follow);
    assert_eq!(attempts, (1, 2));
    assert_eq!((failed.len(), &failed[0]["attempt"]), (1, &json!(1)));
    let view = view.unwrap();
    assert_eq!((view.state, view.error.unwrap().kind), (RunState::Failed, "validation".to_owned()));
}

#[tokio::test]
async fn the_runs_of_a_lost_worker_go_to_another() {
    let harness = Harness::with(|config| config.worker_grace = Duration::ZERO).await;
    harness.submit("f", None).await;
    let mut lost = harness.worker(&ALL, 1).await;
    assert_eq!(lost.run().await.attempt, 1);
    drop(lost);
    let mut other = harness.worker(&ALL, 1).await;
    assert_eq!(other.run().await.attempt, 2);
}

#[tokio::test]
async fn a_worker_that_comes_back_keeps_its_runs_and_stops_the_others() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    drop(worker);
    let active = |run_id: &str| v1::ActiveRun { run_id: run_id.to_owned(), attempt: 1 };
    let back = registration(&ALL, 1, vec![active(&run_id), active("unknown")]);
    let mut worker = Worker::connect(&harness, back, None).await.unwrap();
    assert!(matches!(worker.next().await, Msg::SchedulerHello(_)));
    assert!(matches!(worker.next().await, Msg::InterruptRunCmd(stop) if stop.run_id == "unknown"));
    worker.answer(&request, Ok(json!({}))).await;
    let view = harness.client.follow(&run_id, |_| {}).await.unwrap();
    assert_eq!((view.state, view.attempt), (RunState::Succeeded, 1));
}

#[tokio::test]
async fn a_cancel_reaches_the_worker() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    let path = format!("/v1/runs/{run_id}/cancel");
    let asked = harness.send(Method::POST, &path, &[], b"").await;
    assert_eq!(asked.status(), StatusCode::ACCEPTED);
    let Msg::InterruptRunCmd(stop) = worker.next().await else { panic!("an interrupt") };
    assert_eq!((stop.run_id, stop.attempt), (run_id.clone(), 1));
    worker.answer(&request, Err("canceled")).await;
    let view = harness.client.follow(&run_id, |_| {}).await.unwrap();
    assert_eq!(view.state, RunState::Canceled);
    let again = harness.send(Method::POST, &path, &[], b"").await;
    assert_eq!(again.status(), StatusCode::OK);
}

#[tokio::test]
async fn events_are_replayed_after_the_last_one_seen() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    worker.event(&run_id, "output.delta", r#"{"a":1}"#).await;
    worker.event(&run_id, "bad\nname", "{}").await;
    worker.answer(&request, Ok(json!({}))).await;
    harness.client.follow(&run_id, |_| {}).await.unwrap();
    let path = format!("/v1/runs/{run_id}/events");
    let rest = harness.send(Method::GET, &path, &[("last-event-id", "2")], b"").await;
    let text = rest.bytes(1 << 20).await.unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    let result = text.strip_prefix("id: 3\nevent: output.delta\ndata: {\"a\":1}\n\n").unwrap();
    assert!(result.starts_with("id: 4\nevent: result\ndata: {"), "{text}");
    assert_eq!(text.matches("\n\n").count(), 2);
}

#[tokio::test]
async fn the_same_id_is_the_same_request() {
    let harness = Harness::start().await;
    let submit = async |body: &[u8]| harness.send(Method::POST, "/v1/runs", &[JSON], body).await;
    let body = br#"{"function": "f", "run_id": "mine", "payload": {"n": 1}}"#;
    assert_eq!(submit(body).await.status(), StatusCode::ACCEPTED);
    assert_eq!(submit(body).await.status(), StatusCode::OK);
    let other = br#"{"function": "f", "run_id": "mine", "payload": {"n": 1.0}}"#;
    let refused = submit(other).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    assert_eq!(refused.json::<Value>(1000).await.unwrap()["error"]["code"], "conflict");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_one_form() {
    let harness = Harness::start().await;
    for (method, path, body, status) in [
        (Method::POST, "/v1/runs", "{", 400),
        (Method::POST, "/v1/runs", r#"{"function": "f", "payload": 1}"#, 400),
        (Method::POST, "/v1/runs", r#"{"function": "", "payload": {}}"#, 400),
        (Method::POST, "/v1/runs", r#"{"function": "f", "run_id": "../x"}"#, 400),
        (Method::POST, "/v1/runs", r#"{"function": "f", "unknown": 1}"#, 422),
        (Method::DELETE, "/v1/runs", "", 405),
        (Method::GET, "/v1/runs/none", "", 404),
        (Method::GET, "/v1/runs/none/events", "", 404),
        (Method::GET, "/nowhere", "", 404),
        (Method::POST, "/v1/files", "x", 400),
    ] {
        let answer = harness.send(method, path, &[JSON], body.as_bytes()).await;
        assert_eq!(answer.status().as_u16(), status, "{path} {body}");
        let told: Value = answer.json(1000).await.unwrap();
        assert!(told["error"]["remedy"].is_string(), "{told}");
    }
}

#[tokio::test]
async fn a_token_is_asked_for_where_one_is_set() {
    let token = Secret::from("api");
    let harness = Harness::with(|config| {
        config.api_token = Some(token.clone());
        config.worker_token = Some("worker".into());
    })
    .await;
    let refused = harness.send(Method::GET, "/v1/runs", &[], b"").await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(harness.client.workers().await.is_ok());
    for (sent, admitted) in [(None, false), (Some("api"), false), (Some("worker"), true)] {
        let sent = sent.map(Secret::from);
        let stream = Worker::connect(&harness, registration(&[], 1, Vec::new()), sent.as_ref()).await;
        let code = stream.err().map(|status| status.code());
        assert_eq!(code, (!admitted).then_some(Code::Unauthenticated));
    }
}

#[tokio::test]
async fn workers_are_shown_and_drained() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 3).await;
    assert!(matches!(worker.next().await, Msg::SchedulerHello(_)));
    let workers = harness.client.workers().await.unwrap();
    assert_eq!(workers["workers"][0]["max_concurrency"], 3);
    assert_eq!(workers["workers"][0]["functions"][0]["name"], "f");
    let drained = harness.send(Method::POST, "/v1/workers/w/drain?deadline_ms=50", &[], b"").await;
    assert_eq!(drained.status(), StatusCode::ACCEPTED);
    assert!(matches!(worker.next().await, Msg::DrainCmd(drain) if drain.deadline_ms == 50));
    let run_id = harness.submit("f", None).await;
    let mut other = harness.worker(&ALL, 1).await;
    assert_eq!(other.run().await.run_id, run_id);
}

#[tokio::test]
async fn grpc_callers_get_the_same() {
    let harness = Harness::start().await;
    let mut client = FrontendServiceClient::new(harness.channel().await);
    let mut worker = harness.worker(&ALL, 1).await;
    // Not the shortest form of 1: whoever encodes anew would change it.
    let payload: &[u8] = b"\x81\xa1n\xcd\x00\x01";
    let asked = frontend::ExecuteActionRequest {
        function_name: "f".to_owned(),
        input_payload: payload.into(),
        ..Default::default()
    };
    let run_id = client.execute_action(asked).await.unwrap().into_inner().run_id;
    let request = worker.run().await;
    assert_eq!(request.input_payload, payload);
    let get = frontend::GetRunRequest { run_id: run_id.clone() };
    let early = client.get_run(get.clone()).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    worker.answer(&request, Ok(json!({"y": 2}))).await;
    harness.client.follow(&run_id, |_| {}).await.unwrap();
    let ended = client.get_run(get).await.unwrap().into_inner();
    assert_eq!((ended.success, &ended.output_payload[..]), (true, &b"\x81\xa1y\x02"[..]));
    let unknown = frontend::CancelRunRequest { run_id: "none".to_owned() };
    assert!(!client.cancel_run(unknown).await.unwrap().into_inner().ok);
}

#[tokio::test]
async fn a_tenant_beyond_its_limit_is_told_so_and_others_are_served() {
    let harness = Harness::with(|config| config.limits.max_queued = Some(1)).await;
    harness.submit("f", Some("t")).await;
    harness.submit("f", Some("u")).await;
    let body = br#"{"function": "f", "tenant_id": "t"}"#;
    let refused = harness.send(Method::POST, "/v1/runs", &[JSON], body).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refused.json::<Value>(1000).await.unwrap()["error"]["code"], "capacity");
    let nobodys = frontend::ExecuteActionRequest { function_name: "f".to_owned(), ..Default::default() };
    let mut client = FrontendServiceClient::new(harness.channel().await);
    client.execute_action(nobodys.clone()).await.unwrap();
    let refused = client.execute_action(nobodys).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn what_waits_and_what_could_be_taken_is_measured() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 3).await;
    harness.submit("f", None).await;
    worker.run().await;
    harness.submit("g", None).await;
    let answer = harness.send(Method::GET, "/metrics", &[], b"").await;
    assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.bytes(1 << 20).await.unwrap();
    let text = std::str::from_utf8(&text).unwrap();
    for line in [
        r#"queue_runs{function="f"} 0"#,
        r#"queue_runs{function="g"} 1"#,
        r#"running_runs{function="f"} 1"#,
        r#"capacity_runs{function="f"} 3"#,
        r#"capacity_runs{function="g"} 0"#,
        "workers 1",
        "submitted_runs_total 2",
        r#"refused_runs_total{reason="tenant_full"} 0"#,
    ] {
        assert!(text.lines().any(|said| said == format!("gen_worker_orchestrator_{line}")), "{line}\n{text}");
    }
}

#[tokio::test]
async fn runs_survive_an_orchestrator_that_stops() {
    let harness = Harness::with(|config| config.queue = QueueStore::File).await;
    let run_id = harness.submit("f", None).await;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    let waiting = harness.submit("f", None).await;
    let (data, orchestrator) = (harness.folder.path().join("data"), harness.orchestrator);
    orchestrator.stop().await;
    let config = OrchestratorConfig { queue: QueueStore::File, ..OrchestratorConfig::local(data) };
    let harness = Harness::start_with(config, harness.folder).await;
    let active = vec![v1::ActiveRun { run_id: run_id.clone(), attempt: 1 }];
    let mut worker = Worker::connect(&harness, registration(&ALL, 1, active), None).await.unwrap();
    worker.answer(&request, Ok(json!({"y": 2}))).await;
    let view = harness.client.follow(&run_id, |_| {}).await.unwrap();
    assert_eq!((view.state, view.attempt), (RunState::Succeeded, 1));
    assert_eq!(worker.run().await.run_id, waiting);
}
