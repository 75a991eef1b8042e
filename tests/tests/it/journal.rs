//! Results that survive the process.

use std::{path::Path, time::Duration};

use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::CONFORMANCE;

fn start(scheduler: &FakeScheduler, state: &Path) -> WorkerProcess {
    WorkerSettings::new(CONFORMANCE, scheduler).set("WORKER_STATE_DIR", state.to_string_lossy()).start()
}

async fn registered(scheduler: &FakeScheduler) -> WorkerStream {
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    stream
}

/// The run that the next message is the result of.
async fn next_is_result(stream: &mut WorkerStream) -> String {
    match stream.recv().await.msg {
        Some(Msg::RunResult(result)) => result.run_id,
        other => panic!("{other:?}"),
    }
}

/// Runs `echo`, and takes it that nothing is sent before its result.
async fn echo(stream: &mut WorkerStream, run_id: &str) {
    stream.run(run_id, "echo", json!({"text": ""})).await;
    assert_eq!(stream.next_result().await.run_id, run_id);
}

/// Looks into the file until it speaks of this run.
async fn is_kept(state: &Path, run_id: &str) {
    let kept = || {
        let journal = std::fs::read(state.join("results.journal")).expect("the journal is there");
        journal.windows(run_id.len()).any(|window| window == run_id.as_bytes())
    };
    let looking = async {
        while !kept() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), looking).await.expect("the result is written to the journal");
}

#[tokio::test]
async fn a_result_survives_the_process() {
    let (mut scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    let mut worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    stream.run("finished alone", "sleep", json!({"ms": 1_000})).await;
    echo(&mut stream, "unacknowledged").await;
    scheduler.stop().await;
    is_kept(state.path(), "finished alone").await;
    worker.kill().await;
    scheduler.restart().await;
    let _worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    assert_eq!(next_is_result(&mut stream).await, "unacknowledged");
    assert_eq!(next_is_result(&mut stream).await, "finished alone");
}

#[tokio::test]
async fn an_acknowledged_result_is_not_sent_by_the_next_process() {
    let (scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    let mut worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    stream.run("acknowledged", "echo", json!({"text": ""})).await;
    let result = stream.next_result().await;
    stream.ack(&result).await;
    // It is sent once it is in the journal, and so is what the journal was told before.
    echo(&mut stream, "unacknowledged").await;
    worker.kill().await;
    let _worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    assert_eq!(next_is_result(&mut stream).await, "unacknowledged");
    echo(&mut stream, "probe").await;
}

#[tokio::test]
async fn what_the_scheduler_read_before_the_worker_left_is_not_sent_again() {
    let (scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    let mut worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    echo(&mut stream, "read").await;
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
    let _worker = start(&scheduler, state.path());
    echo(&mut registered(&scheduler).await, "probe").await;
}

#[tokio::test]
async fn what_a_stream_that_broke_at_the_end_may_have_lost_is_sent_by_the_next_process() {
    let (scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    let mut worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    echo(&mut stream, "read by whom").await;
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.drop_connection();
    assert!(worker.ended().await.success());
    let _worker = start(&scheduler, state.path());
    assert_eq!(next_is_result(&mut registered(&scheduler).await).await, "read by whom");
}

#[tokio::test]
async fn a_scheduler_that_acknowledges_is_taken_at_its_word_when_the_worker_leaves() {
    let (scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    let mut worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    stream.hello(&["result-ack"]).await;
    echo(&mut stream, "read").await;
    stream.run("acknowledged late", "echo", json!({"text": ""})).await;
    let result = stream.next_result().await;
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.ack(&result).await;
    stream.end_ok();
    assert!(worker.ended().await.success());
    let _worker = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    assert_eq!(next_is_result(&mut stream).await, "read");
    echo(&mut stream, "probe").await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_ends_the_start() {
    let (scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    std::fs::write(state.path().join("file"), "").unwrap();
    let mut worker = start(&scheduler, &state.path().join("file/state"));
    assert_eq!(worker.ended().await.code(), Some(1));
    let log = worker.log();
    assert!(log.contains("WORKER_STATE_DIR") && log.contains("file/state"), "{log}");
}

#[tokio::test]
async fn a_second_worker_on_one_directory_does_not_start() {
    let (scheduler, state) = (FakeScheduler::start().await, TempDir::new().unwrap());
    let _first = start(&scheduler, state.path());
    let mut stream = registered(&scheduler).await;
    let mut second = start(&scheduler, state.path());
    assert_eq!(second.ended().await.code(), Some(1));
    let log = second.log();
    assert!(log.contains("WORKER_STATE_DIR: another worker"), "{log}");
    echo(&mut stream, "the first is unharmed").await;
}
