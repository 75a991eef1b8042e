//! Cancels and deadlines, heeded or not.

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::WorkerStream;
use gen_worker_tests::pack;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::worker;

fn interrupt(run_id: &str) -> Msg {
    Msg::InterruptRunCmd(v1::InterruptTaskCommand { run_id: run_id.into(), ..Default::default() })
}

fn with_deadline(function: &str, payload: &Value, timeout_ms: i64) -> Msg {
    Msg::RunRequest(v1::TaskExecutionRequest {
        run_id: "r".into(),
        function_name: function.into(),
        input_payload: pack(payload).into(),
        timeout_ms,
        ..Default::default()
    })
}

async fn ends_as(stream: &mut WorkerStream, kind: &str, retryable: bool) {
    let result = stream.next_result().await;
    assert_eq!((result.error_type.as_str(), result.retryable), (kind, retryable));
}

/// Starts a blocking function that never looks, waits until it is at work, and cancels it.
async fn leave_behind(stream: &mut WorkerStream, run_id: &str, ms: u64) {
    stream.run(run_id, "spin", json!({"ms": ms})).await;
    let at_work = |m| matches!(m, Msg::WorkerEvent(e) if e.run_id == run_id).then_some(());
    stream.wait_for("the function to be at work", at_work).await;
    stream.send(interrupt(run_id)).await;
    ends_as(stream, "canceled", false).await;
}

#[tokio::test]
async fn cancel_reaches_or_is_reported() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    for heed_cancel in [true, false] {
        stream.run("r", "sleep", json!({"ms": 3_600_000, "heed_cancel": heed_cancel})).await;
        stream.send(interrupt("r")).await;
        ends_as(&mut stream, "canceled", false).await;
    }
}

#[tokio::test]
async fn a_deadline_is_enforced_even_if_ignored() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    for heed_cancel in [true, false] {
        let payload = json!({"ms": 3_600_000, "heed_cancel": heed_cancel});
        stream.send(with_deadline("sleep", &payload, 50)).await;
        ends_as(&mut stream, "timeout", true).await;
    }
}

#[tokio::test]
async fn a_zombie_keeps_its_permit() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_CONCURRENCY", "1")]).await;
    leave_behind(&mut stream, "r", 2_000).await;
    stream.run("next", "echo", json!({"text": ""})).await;
    let busy = stream.next_result().await;
    assert_eq!(busy.error_message, "Worker concurrency limit reached (1).");
    // It takes runs again once the thread has come to its end, and not before.
    let mut refusals = 1;
    loop {
        stream.run("next", "echo", json!({"text": ""})).await;
        if stream.next_result().await.success {
            break;
        }
        refusals += 1;
    }
    assert!(refusals > 1);
}

#[tokio::test]
async fn an_async_function_that_is_left_behind_gives_its_permit_back() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_CONCURRENCY", "1")]).await;
    let payload = json!({"ms": 3_600_000, "heed_cancel": false});
    stream.send(with_deadline("sleep", &payload, 50)).await;
    ends_as(&mut stream, "timeout", true).await;
    loop {
        stream.run("next", "echo", json!({"text": ""})).await;
        if stream.next_result().await.success {
            break;
        }
    }
}

#[tokio::test]
async fn a_cancel_that_overtakes_its_run_ends_it() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    stream.send(interrupt("late")).await;
    stream.run("late", "echo", json!({"text": ""})).await;
    ends_as(&mut stream, "canceled", false).await;
}

#[tokio::test]
async fn an_incremental_run_that_is_canceled_ends_its_output() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    stream.run("r", "count", json!({"n": 4_000_000, "delay_ms": 1})).await;
    stream.wait_for("a delta", |m| matches!(m, Msg::WorkerEvent(_)).then_some(())).await;
    stream.send(interrupt("r")).await;
    ends_as(&mut stream, "canceled", false).await;
    let errors = stream.events("r").into_iter().filter(|event| event.event_type == "output.error").count();
    assert_eq!(errors, 1);
}

#[tokio::test]
async fn a_higher_attempt_takes_the_place_of_a_lower_one_silently() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let attempt = |attempt, ms: u64| {
        Msg::RunRequest(v1::TaskExecutionRequest {
            run_id: "r".into(),
            function_name: "sleep".into(),
            input_payload: pack(&json!({"ms": ms})).into(),
            attempt,
            ..Default::default()
        })
    };
    stream.send(attempt(1, 3_600_000)).await;
    stream.send(attempt(2, 1)).await;
    let result = stream.next_result().await;
    assert!(result.success && result.attempt == 2);
    stream.run("after", "echo", json!({"text": ""})).await;
    assert_eq!(stream.next_result().await.run_id, "after");
}

#[tokio::test]
async fn too_many_functions_that_do_not_stop_end_the_worker() {
    let (_scheduler, mut worker, mut stream) = worker(&[("WORKER_MAX_ZOMBIES", "1")]).await;
    for run_id in ["one", "two"] {
        leave_behind(&mut stream, run_id, 20_000).await;
    }
    stream.ended().await.unwrap();
    stream.end_ok();
    assert_eq!(worker.ended().await.code(), Some(7), "{}", worker.log());
}

#[tokio::test]
async fn capacity_that_is_lost_is_not_advertised() {
    let (scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_CONCURRENCY", "2")]).await;
    leave_behind(&mut stream, "zombie", 20_000).await;
    // It counts as one that does not stop once a second grace has passed, which the next registrations show.
    loop {
        stream.drop_connection();
        stream = scheduler.accept().await;
        let resources = stream.next_registration().await.resources.unwrap();
        if resources.max_concurrency == 1 {
            break;
        }
    }
}

#[tokio::test]
async fn a_deadline_ends_blocking_code_as_far_as_anyone_can_tell() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    stream.send(with_deadline("spin", &json!({"ms": 20_000}), 50)).await;
    ends_as(&mut stream, "timeout", true).await;
}

#[tokio::test]
async fn a_deadline_counts_from_admission_on() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", silent.local_addr().unwrap());
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let Msg::RunRequest(request) = with_deadline("digest", &json!({"file": {"ref": "cat.png"}}), 200) else {
        unreachable!("it is a run")
    };
    stream.send(Msg::RunRequest(v1::TaskExecutionRequest { file_base_url: base, ..request })).await;
    ends_as(&mut stream, "timeout", true).await;
}

#[tokio::test]
async fn a_cancel_that_comes_twice_or_late_changes_nothing() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    stream.run("r", "sleep", json!({"ms": 3_600_000})).await;
    stream.send(interrupt("r")).await;
    stream.send(interrupt("r")).await;
    ends_as(&mut stream, "canceled", false).await;
    stream.send(interrupt("r")).await;
    stream.run("next", "echo", json!({"text": ""})).await;
    let next = stream.next_result().await;
    assert!(next.success && next.run_id == "next", "{next:?}");
}

/// The cancel is for the first attempt, and comes when the second is at work.
#[tokio::test]
async fn a_cancel_of_an_attempt_is_for_that_attempt() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let Msg::RunRequest(request) = with_deadline("sleep", &json!({"ms": 300}), 0) else {
        unreachable!("it is a run")
    };
    stream.send(Msg::RunRequest(v1::TaskExecutionRequest { attempt: 2, ..request })).await;
    let first = v1::InterruptTaskCommand { run_id: "r".into(), attempt: 1 };
    stream.send(Msg::InterruptRunCmd(first)).await;
    let result = stream.next_result().await;
    assert!(result.success && result.attempt == 2, "{result:?}");
}
