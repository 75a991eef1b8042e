//! Streams that end, and what survives them.

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerSettings, pack};
use serde_json::json;
use tonic::Status;

use super::{CONFORMANCE, worker};

async fn first_is_registration(stream: &mut WorkerStream) {
    let first = stream.recv().await.msg;
    assert!(matches!(&first, Some(Msg::WorkerRegistration(r)) if !r.is_heartbeat), "{first:?}");
}

/// Runs `echo` and returns its result.
async fn echo(stream: &mut WorkerStream, run_id: &str) -> v1::TaskExecutionResult {
    stream.run(run_id, "echo", json!({"text": ""})).await;
    let result = stream.next_result().await;
    assert_eq!(result.run_id, run_id);
    result
}

#[tokio::test]
async fn results_are_delivered_once_or_fenced() {
    let (scheduler, _worker, mut stream) = worker(&[]).await;
    stream.run("unfinished", "sleep", json!({"ms": 400})).await;
    let acknowledged = echo(&mut stream, "acknowledged").await;
    stream.ack(&acknowledged).await;
    // Commands are taken in order: with this result here, the acknowledgement was read.
    echo(&mut stream, "unacknowledged").await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    first_is_registration(&mut stream).await;
    assert_eq!(stream.next_result().await.run_id, "unacknowledged");
    let finished = stream.next_result().await;
    assert_eq!((finished.run_id.as_str(), finished.success), ("unfinished", true));
}

#[tokio::test]
async fn a_stream_that_the_scheduler_closes_in_peace_is_opened_again() {
    let (scheduler, _worker, mut stream) = worker(&[]).await;
    stream.end_ok();
    first_is_registration(&mut scheduler.accept().await).await;
}

#[tokio::test]
async fn active_runs_are_named_at_every_registration() {
    let (scheduler, _worker, mut stream) = worker(&[]).await;
    stream
        .send(Msg::RunRequest(v1::TaskExecutionRequest {
            run_id: "long".into(),
            function_name: "sleep".into(),
            input_payload: pack(&json!({"ms": 3_600_000})).into(),
            attempt: 4,
            ..Default::default()
        }))
        .await;
    stream.run("probe", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    stream.drop_connection();
    let registration = scheduler.accept().await.next_registration().await;
    assert_eq!(registration.active_runs, [v1::ActiveRun { run_id: "long".into(), attempt: 4 }]);
}

#[tokio::test]
async fn the_leader_is_dialled_where_a_redirect_says() {
    let (follower, leader) = (FakeScheduler::start().await, FakeScheduler::start().await);
    follower.refuse_next(Status::failed_precondition(format!("not_leader: {}", leader.addr())));
    let _worker = WorkerSettings::new(CONFORMANCE, &follower).start();
    first_is_registration(&mut leader.accept().await).await;
}

#[tokio::test]
async fn seeds_are_tried_when_the_first_address_is_dead() {
    let (mut dead, seed) = (FakeScheduler::start().await, FakeScheduler::start().await);
    dead.stop().await;
    let _worker =
        WorkerSettings::new(CONFORMANCE, &dead).set("SCHEDULER_ADDRS", seed.addr().to_string()).start();
    first_is_registration(&mut seed.accept().await).await;
}

#[tokio::test]
async fn a_scheduler_that_speaks_another_protocol_ends_the_worker() {
    for refusal in [
        Status::unimplemented("no such method"),
        Status::failed_precondition("unsupported_worker_protocol: 2 is needed"),
    ] {
        let scheduler = FakeScheduler::start().await;
        scheduler.refuse_next(refusal);
        let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).start();
        assert_eq!(worker.ended().await.code(), Some(3));
        assert!(worker.log().contains("does not speak this worker's protocol"), "{}", worker.log());
    }
}

#[tokio::test]
async fn the_worker_gives_up_after_as_many_attempts_as_it_is_told() {
    let mut scheduler = FakeScheduler::start().await;
    scheduler.stop().await;
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("MAX_RECONNECT_ATTEMPTS", "3").start();
    assert_eq!(worker.ended().await.code(), Some(4));
    assert!(worker.log().contains("gave up after 3 failed connection attempts"), "{}", worker.log());
}
