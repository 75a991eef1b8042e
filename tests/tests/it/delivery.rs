//! What becomes of results that were written, and of functions that panic: with waits that no variable sets.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use gen_worker::{Call, DeltaStream, Function, RealtimeSocket, RuntimeConfig, Worker, WorkerError};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::Embedded;
use serde_json::{Value, json};

fn echo() -> Function {
    Function::builder::<Value>("echo", "tests")
        .asynchronous(|call: Call<Value>| async move { Ok::<_, WorkerError>(call.input) })
        .unwrap()
}

/// A worker that keeps a written result for no time at all, and looks every few milliseconds.
async fn forgetful(scheduler: &FakeScheduler) -> (Embedded, WorkerStream) {
    let settings = RuntimeConfig {
        result_retention: Duration::ZERO,
        heartbeat: Duration::from_millis(20),
        ..Embedded::settings(&scheduler.addr().to_string())
    };
    let worker = Embedded::start(Worker::builder(settings).function(echo()));
    (worker, scheduler.accept().await)
}

/// Runs `echo`, whose result is the next.
async fn run_echo(stream: &mut WorkerStream, run_id: &str) {
    stream.run(run_id, "echo", json!({})).await;
    assert_eq!(stream.next_result().await.run_id, run_id);
}

/// The worker has kept its books since.
async fn a_heartbeat_later(stream: &mut WorkerStream) {
    for _ in 0..2 {
        while !stream.next_registration().await.is_heartbeat {}
    }
}

#[tokio::test]
async fn a_result_is_forgotten_after_its_time_when_nobody_acknowledges() {
    let scheduler = FakeScheduler::start().await;
    let (worker, mut stream) = forgetful(&scheduler).await;
    run_echo(&mut stream, "old").await;
    a_heartbeat_later(&mut stream).await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    run_echo(&mut stream, "new").await;
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_scheduler_that_acknowledges_is_waited_for_however_long_it_takes() {
    let scheduler = FakeScheduler::start().await;
    let (worker, mut stream) = forgetful(&scheduler).await;
    stream.hello(&["result-ack"]).await;
    run_echo(&mut stream, "kept").await;
    a_heartbeat_later(&mut stream).await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    let kept = stream.next_result().await;
    assert_eq!(kept.run_id, "kept");
    stream.ack(&kept).await;
    run_echo(&mut stream, "probe").await;
    worker.leave(stream).await;
}

/// A worker that keeps three small results, or a few more.
async fn with_little_room(scheduler: &FakeScheduler) -> (Embedded, WorkerStream) {
    let settings =
        RuntimeConfig { result_buffer: 2_000, ..Embedded::settings(&scheduler.addr().to_string()) };
    let waits = Function::builder::<Value>("waits", "tests")
        .asynchronous(|call: Call<Value>| async move {
            call.context.canceled().await;
            Ok::<_, WorkerError>(())
        })
        .unwrap();
    let worker = Embedded::start(Worker::builder(settings).functions([echo(), waits]));
    (worker, scheduler.accept().await)
}

#[tokio::test]
async fn a_scheduler_that_acknowledges_nothing_gets_no_more_runs_done_and_loses_none() {
    let scheduler = FakeScheduler::start().await;
    let (worker, mut stream) = with_little_room(&scheduler).await;
    stream.hello(&["result-ack"]).await;
    stream.run("running", "waits", json!({})).await;
    let mut held = Vec::new();
    let refused = loop {
        stream.run(&format!("r{}", held.len()), "echo", json!({})).await;
        let result = stream.next_result().await;
        if !result.success {
            break result;
        }
        held.push(result);
        assert!(held.len() < 10, "it is bounded");
    };
    assert!(refused.retryable && refused.error_message.contains("wait to be delivered"), "{refused:?}");
    stream.run("running", "waits", json!({})).await;
    run_echo(&mut stream, "probe").await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    stream.hello(&["result-ack"]).await;
    for result in &held {
        let again = stream.next_result().await;
        assert_eq!(again.run_id, result.run_id);
        stream.ack(&again).await;
    }
    for refused in [refused.run_id.as_str(), "probe"] {
        let again = stream.next_result().await;
        assert_eq!(again.run_id, refused, "what is running was not refused");
        stream.ack(&again).await;
    }
    stream.run("room again", "echo", json!({})).await;
    let result = stream.next_result().await;
    assert!(result.success);
    stream.ack(&result).await;
    worker.shutdown().drain();
    let result = stream.next_result().await;
    assert_eq!(result.run_id, "running");
    stream.ack(&result).await;
    worker.leave(stream).await;
}

#[tokio::test]
async fn without_acknowledgements_the_oldest_results_make_room() {
    let scheduler = FakeScheduler::start().await;
    let (worker, mut stream) = with_little_room(&scheduler).await;
    for n in 0..20 {
        run_echo(&mut stream, &n.to_string()).await;
    }
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    let kept = stream.next_result().await.run_id.parse::<u32>().unwrap();
    assert!(kept > 10, "{kept} is among the newest");
    for n in kept + 1..20 {
        assert_eq!(stream.next_result().await.run_id, n.to_string());
    }
    worker.leave(stream).await;
}

fn blocks() -> Function {
    Function::builder::<Value>("blocks", "tests")
        .blocking(|_: Call<Value>| -> Result<(), WorkerError> { panic!("in a thread") })
        .unwrap()
}

fn streams() -> Function {
    Function::builder::<Value>("streams", "tests")
        .asynchronous(|_: Call<Value>| async {
            let items = stream::iter([1, 2]).map(|n| if n == 2 { panic!("in a stream") } else { Ok(n) });
            Ok::<_, WorkerError>(DeltaStream::new(items))
        })
        .unwrap()
}

fn converses() -> Function {
    Function::realtime("converses", "tests")
        .asynchronous(|_: Call<RealtimeSocket>| async {
            if true {
                panic!("in a session");
            }
            Ok::<_, WorkerError>(())
        })
        .unwrap()
}

#[tokio::test]
async fn whatever_panics_is_reported_as_internal_and_the_worker_lives_on() {
    let scheduler = FakeScheduler::start().await;
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let functions = [blocks(), streams(), converses(), echo()];
    let worker = Embedded::start(Worker::builder(settings).functions(functions));
    let mut stream = scheduler.accept().await;
    for function in ["blocks", "streams"] {
        stream.run(function, function, json!({})).await;
        let result = stream.next_result().await;
        let told = (result.error_type.as_str(), result.retryable, result.safe_message.as_str());
        assert_eq!(told, ("internal", false, "internal error"), "{function}");
    }
    let events: Vec<_> = stream.events("streams").into_iter().map(|event| event.event_type).collect();
    assert_eq!(events[..2], ["output.delta", "output.error"]);
    let open = v1::RealtimeOpenCommand {
        session_id: "s".into(),
        function_name: "converses".into(),
        ..Default::default()
    };
    stream.send(Msg::RealtimeOpenCmd(open)).await;
    let close =
        stream.wait_for("a close", |m| if let Msg::RealtimeCloseCmd(c) = m { Some(c) } else { None }).await;
    assert_eq!(close.reason, "error:InternalError");
    run_echo(&mut stream, "after").await;
    worker.leave(stream).await;
}
