//! Waits for the end of a run: in the request that asks for it, and later.

use gen_worker_net::{HttpResponse, Method, StatusCode};
use gen_worker_orchestrator::RunState;
use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use serde_json::{Value, json};
use tokio::{join, select, time::timeout};

use crate::harness::{ALL, Harness, PATIENCE};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Longer than a client of these tests waits for a word: whoever is answered did not wait that long.
const LONG: &str = "/v1/runs?wait_ms=60000";

/// The status of an answer, and what it says.
async fn told(answer: impl Future<Output = HttpResponse>) -> (u16, Value) {
    let answer = answer.await;
    (answer.status().as_u16(), answer.json(10_000).await.unwrap())
}

impl Harness {
    /// Asks for a run with a key, and waits.
    fn ask_and_wait(&self, path: &str, key: &str) -> impl Future<Output = (u16, Value)> + use<> {
        told(self.send(Method::POST, path, &[JSON, ("idempotency-key", key)], br#"{"function": "f"}"#))
    }

    async fn result(&self, run_id: &Value) -> (u16, Value) {
        let path = format!("/v1/runs/{}/result?wait_ms=9000", run_id.as_str().unwrap());
        told(self.send(Method::GET, &path, &[], b"")).await
    }
}

#[tokio::test]
async fn one_request_asks_for_a_run_and_waits_for_its_end() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    for (key, outcome, state) in [
        ("good", Ok(json!({"y": 2})), "succeeded"),
        ("bad", Err("validation"), "failed"),
        ("stopped", Err("canceled"), "canceled"),
    ] {
        let script = async {
            let request = worker.run().await;
            if state == "canceled" {
                harness.client.cancel(&request.run_id).await.unwrap();
                assert!(matches!(worker.next().await, Msg::InterruptRunCmd(_)));
            }
            worker.answer(&request, outcome).await;
        };
        // More than there is time is a minute.
        let asked = harness.ask_and_wait(&format!("/v1/runs?wait_ms={}", u64::MAX), key);
        let (ended, ()) = join!(asked, script);
        assert_eq!((ended.0, &ended.1["state"]), (200, &json!(state)));
        assert_eq!(harness.result(&ended.1["run_id"]).await, ended);
    }
    let view = harness.ask_and_wait(LONG, "good").await.1;
    assert_eq!(view["output"], json!({"y": 2}), "{view}");
}

#[tokio::test]
async fn what_has_not_ended_within_the_wait_goes_on() {
    let harness = Harness::start().await;
    let (status, early) = harness.ask_and_wait("/v1/runs?wait_ms=1", "k").await;
    assert_eq!((status, &early["state"]), (202, &json!("queued")));
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    let (status, again) = harness.ask_and_wait("/v1/runs?wait_ms=1", "k").await;
    assert_eq!((status, &again["state"]), (202, &json!("running")));
    assert_eq!((&early["run_id"], &again["run_id"]), (&json!(request.run_id), &json!(request.run_id)));
    let (ended, ()) = join!(harness.result(&early["run_id"]), worker.answer(&request, Ok(json!(7))));
    assert_eq!((ended.0, &ended.1["output"]), (200, &json!(7)));
}

#[tokio::test]
async fn without_a_wait_a_run_is_named_at_once() {
    let harness = Harness::start().await;
    let (status, taken) = harness.ask_and_wait("/v1/runs?wait_ms=0", "k").await;
    assert_eq!((status, &taken), (202, &json!({"run_id": taken["run_id"]})));
    assert_eq!(harness.ask_and_wait("/v1/runs", "k").await, (200, taken));
}

#[tokio::test]
async fn what_is_refused_is_not_waited_for() {
    let harness = Harness::with(|config| config.limits.max_queued = Some(1)).await;
    harness.client.cancel("late").await.unwrap();
    let ask = async |path: &str, body: Value| {
        let (status, told) =
            told(harness.send(Method::POST, path, &[JSON], body.to_string().as_bytes())).await;
        (status, told["error"]["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask("/v1/runs", json!({"function": "f", "run_id": "mine"})).await.0, 202);
    for (path, body, status, code) in [
        (LONG, json!({"function": "f"}), 429, "capacity"),
        (LONG, json!({"function": "g", "run_id": "mine"}), 409, "conflict"),
        (LONG, json!({"function": "f", "run_id": "late"}), 409, "canceled"),
        (LONG, json!({"function": ""}), 400, "usage"),
        ("/v1/runs?wait_ms=-1", json!({"function": "g", "tenant_id": "t"}), 400, "usage"),
    ] {
        assert_eq!(ask(path, body).await, (status, code.to_owned()), "{path} {code}");
    }
    assert_eq!(harness.client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_key_waits_for_the_same_run() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 2).await;
    let script = async {
        let request = worker.run().await;
        let (again, ()) = join!(harness.ask_and_wait(LONG, "k"), worker.answer(&request, Ok(json!(7))));
        (again, request.run_id)
    };
    let (first, (again, run_id)) = join!(harness.ask_and_wait(LONG, "k"), script);
    assert_eq!((first.0, &first.1["run_id"]), (200, &json!(run_id)));
    assert_eq!(again, first);
    assert_eq!(harness.client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_stops_nothing() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = select! {
        request = worker.run() => request,
        answer = harness.ask_and_wait(LONG, "k") => panic!("{answer:?}"),
    };
    // That the caller is gone is known by the time that others are answered.
    assert_eq!(harness.client.get(&request.run_id).await.unwrap().state, RunState::Running);
    worker.answer(&request, Ok(json!(7))).await;
    // Nothing else was said to the worker before.
    assert!(matches!(worker.next().await, Msg::ResultAck(_)));
    assert_eq!(harness.client.get(&request.run_id).await.unwrap().output, Some(json!(7)));
}

#[tokio::test]
async fn an_orchestrator_that_stops_lets_nobody_wait() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    let asked = harness.ask_and_wait(LONG, "k");
    let script = async {
        let run_id = worker.run().await.run_id;
        timeout(PATIENCE, harness.orchestrator.stop()).await.unwrap();
        run_id
    };
    let ((status, stands), run_id) = join!(asked, script);
    assert_eq!(status, 202, "{stands}");
    assert_eq!((&stands["run_id"], &stands["state"]), (&json!(run_id), &json!("running")));
}

#[tokio::test]
async fn a_result_is_waited_for() {
    let harness = Harness::start().await;
    let run_id = harness.submit("f", None).await;
    let path = format!("/v1/runs/{run_id}/result");
    let early = harness.send(Method::GET, &path, &[], b"").await;
    assert_eq!(early.status(), StatusCode::ACCEPTED);
    assert_eq!(early.json::<Value>(1000).await.unwrap()["state"], "queued");
    let mut worker = harness.worker(&ALL, 1).await;
    let script = async {
        let request = worker.run().await;
        worker.event(&run_id, "job.progress", r#"{"progress": 0.5}"#).await;
        worker.answer(&request, Ok(json!({"y": 2}))).await;
    };
    let long_poll = format!("{path}?wait_ms=9000");
    let (ended, ()) = tokio::join!(harness.send(Method::GET, &long_poll, &[], b""), script);
    assert_eq!(ended.status(), StatusCode::OK);
    assert_eq!(ended.json::<Value>(1000).await.unwrap()["output"], json!({"y": 2}));
    let wrong = harness.send(Method::GET, &format!("{path}?wait_ms=-1"), &[], b"").await;
    assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
    assert_eq!(
        harness.send(Method::GET, "/v1/runs/none/result", &[], b"").await.status(),
        StatusCode::NOT_FOUND
    );
}
