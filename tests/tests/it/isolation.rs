//! What one run or one thread must not do to the rest of the worker, and a second attempt not to the first.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use gen_worker::{
    ActionContext, Call, DeltaStream, Frame, Function, LogLevel, Ports, RealtimeSocket, RuntimeConfig,
    Worker, WorkerError,
};
use gen_worker_core::{ByteLimit, JobFailure, Secret, ports::CredentialSource};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, pack};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::worker;

fn settings(scheduler: &FakeScheduler) -> RuntimeConfig {
    RuntimeConfig {
        max_message_bytes: 1 << 20,
        max_delta: ByteLimit::Unlimited,
        ..Embedded::settings(&scheduler.addr().to_string())
    }
}

fn shouts() -> Function {
    Function::builder::<Value>("shouts", "tests")
        .asynchronous(|call: Call<Value>| async move {
            call.context.log(&"x".repeat(2 << 20), LogLevel::Info);
            Ok::<_, WorkerError>(())
        })
        .unwrap()
}

fn streams() -> Function {
    Function::builder::<Value>("streams", "tests")
        .asynchronous(|_: Call<Value>| async {
            Ok::<_, WorkerError>(DeltaStream::new(futures_util::stream::iter([Ok("x".repeat(2 << 20))])))
        })
        .unwrap()
}

fn converses() -> Function {
    Function::realtime("converses", "tests")
        .asynchronous(|call: Call<RealtimeSocket>| async move {
            call.input.send(Frame::Text("x".repeat(2 << 20))).await;
            Ok::<_, WorkerError>(())
        })
        .unwrap()
}

#[tokio::test]
async fn an_event_that_no_message_can_hold_costs_no_stream() {
    for function in ["shouts", "streams"] {
        let scheduler = FakeScheduler::start().await;
        let worker = Embedded::start(Worker::builder(settings(&scheduler)).functions([shouts(), streams()]));
        let mut stream = scheduler.accept().await;
        stream.run("r", function, json!({})).await;
        assert_eq!(stream.next_result().await.run_id, "r", "{function}");
        worker.leave(stream).await;
    }
}

#[tokio::test]
async fn a_frame_that_no_message_can_hold_costs_no_stream() {
    let scheduler = FakeScheduler::start().await;
    let worker = Embedded::start(Worker::builder(settings(&scheduler)).functions([converses()]));
    let mut stream = scheduler.accept().await;
    let open = v1::RealtimeOpenCommand {
        session_id: "s".into(),
        function_name: "converses".into(),
        ..Default::default()
    };
    stream.send(Msg::RealtimeOpenCmd(open)).await;
    stream.wait_for("a close", |m| matches!(m, Msg::RealtimeCloseCmd(_)).then_some(())).await;
    worker.leave(stream).await;
}

/// A source of tokens on a file system that hangs.
struct Hangs(std::sync::Mutex<Option<std::sync::mpsc::Receiver<()>>>);

#[async_trait]
impl CredentialSource for Hangs {
    fn bearer(&self) -> Option<Secret<String>> {
        None
    }

    async fn renew(&self) -> Result<(), JobFailure> {
        if let Some(hangs) = self.0.lock().unwrap().take() {
            tokio::task::spawn_blocking(move || hangs.recv());
        }
        Ok(())
    }

    async fn refresh(&self, _token: Secret<String>) -> Result<(), JobFailure> {
        Ok(())
    }
}

#[tokio::test]
async fn a_thread_that_hangs_does_not_keep_the_worker_from_leaving() {
    let (_release, hangs) = std::sync::mpsc::channel();
    let scheduler = FakeScheduler::start().await;
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let ports = Ports { credential: Arc::new(Hangs(std::sync::Mutex::new(Some(hangs)))), ..Ports::default() };
    let worker = Embedded::start(Worker::builder(settings).function(shouts()).ports(ports));
    let stream = scheduler.accept().await;
    timeout(Duration::from_secs(10), worker.leave(stream)).await.expect("it leaves");
}

fn attempt(function: &str, run_id: &str, attempt: i64, payload: &Value) -> Msg {
    Msg::RunRequest(v1::TaskExecutionRequest {
        run_id: run_id.into(),
        function_name: function.into(),
        input_payload: pack(payload).into(),
        attempt,
        ..Default::default()
    })
}

#[tokio::test]
async fn an_attempt_that_found_no_place_may_come_again() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_CONCURRENCY", "1")]).await;
    stream.send(attempt("sleep", "long", 1, &json!({"ms": 200}))).await;
    stream.send(attempt("echo", "r", 1, &json!({"text": ""}))).await;
    assert_eq!(stream.next_result().await.safe_message, "worker busy");
    assert_eq!(stream.next_result().await.run_id, "long");
    stream.send(attempt("echo", "other", 1, &json!({"text": ""}))).await;
    assert!(stream.next_result().await.success, "there is a place again");
    stream.send(attempt("echo", "r", 1, &json!({"text": ""}))).await;
    let result = stream.next_result().await;
    assert!(result.success, "{result:?}");
}

#[tokio::test]
async fn a_run_sent_again_while_draining_is_not_refused_and_finished() {
    let (_scheduler, worker, mut stream) = worker(&[("WORKER_DRAIN_TIMEOUT_SECONDS", "20")]).await;
    stream.send(attempt("sleep", "r", 1, &json!({"ms": 700}))).await;
    stream.run("probe", "none", json!({})).await;
    stream.next_result().await;
    worker.terminate().await;
    stream.next_registration().await;
    stream.send(attempt("sleep", "r", 1, &json!({"ms": 700}))).await;
    let result = stream.next_result().await;
    assert!(result.success, "{result:?}");
}

#[tokio::test]
async fn an_attempt_that_was_superseded_says_no_more() {
    let chats = Function::builder::<Value>("chats", "tests")
        .asynchronous(|call: Call<Value>| async move {
            loop {
                let own = Map::from_iter([("attempt".to_owned(), call.context.attempt().into())]);
                ActionContext::emit(&call.context, "chat", own);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            #[expect(unreachable_code)]
            Ok::<_, WorkerError>(())
        })
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let worker =
        Embedded::start(Worker::builder(Embedded::settings(&scheduler.addr().to_string())).function(chats));
    let mut stream = scheduler.accept().await;
    async fn next(stream: &mut WorkerStream) -> i64 {
        let event =
            stream.wait_for("an event", |m| if let Msg::WorkerEvent(e) = m { Some(e) } else { None }).await;
        serde_json::from_slice::<Value>(&event.payload_json).unwrap()["attempt"].as_i64().unwrap()
    }
    stream.send(attempt("chats", "r", 1, &json!({}))).await;
    assert_eq!(next(&mut stream).await, 1);
    stream.send(attempt("chats", "r", 2, &json!({}))).await;
    while next(&mut stream).await != 2 {}
    for _ in 0..50 {
        assert_eq!(next(&mut stream).await, 2);
    }
    worker.shutdown().cancel();
    stream.ended().await.unwrap();
    stream.end_ok();
    worker.ended().await.unwrap();
}
