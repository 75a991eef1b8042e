//! The scheduler, met by a client of the real stream.

use gen_worker_proto::scheduler::{
    TaskExecutionResult, WorkerEvent, WorkerRegistration,
    scheduler_worker_service_client::SchedulerWorkerServiceClient, worker_scheduler_message::Msg,
};
use tonic::{Code, transport::Channel};

use super::*;

type Sender = mpsc::Sender<WorkerSchedulerMessage>;

async fn channel(scheduler: &FakeScheduler) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", scheduler.addr())).unwrap();
    endpoint.connect().await.unwrap()
}

/// A client's stream: what it sends by, and what it receives or how it was refused.
async fn open(scheduler: &FakeScheduler) -> (Sender, Result<Streaming<WorkerSchedulerMessage>, Status>) {
    let (sender, messages) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(messages));
    request.metadata_mut().insert("authorization", "Bearer t".parse().unwrap());
    let answer = SchedulerWorkerServiceClient::new(channel(scheduler).await).connect_worker(request).await;
    (sender, answer.map(Response::into_inner))
}

async fn say(sender: &Sender, msg: Msg) {
    sender.send(WorkerSchedulerMessage { msg: Some(msg) }).await.unwrap();
}

fn result(run_id: &str) -> Msg {
    Msg::RunResult(TaskExecutionResult { run_id: run_id.to_owned(), success: true, ..Default::default() })
}

#[tokio::test]
async fn speaks_both_ways_and_keeps_what_it_skips() {
    let scheduler = FakeScheduler::start().await;
    let (sender, inbound) = open(&scheduler).await;
    let mut stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some("Bearer t"));

    say(&sender, Msg::WorkerRegistration(WorkerRegistration::default())).await;
    assert!(!stream.next_registration().await.is_heartbeat);
    stream.run("r1", "f", serde_json::json!({"x": 1})).await;
    let request = inbound.unwrap().message().await.unwrap().unwrap();
    let Some(Msg::RunRequest(request)) = request.msg else { panic!("a run") };
    assert_eq!((&request.run_id[..], &request.input_payload[..]), ("r1", &b"\x81\xa1x\x01"[..]));

    let event =
        WorkerEvent { run_id: "r1".to_owned(), event_type: "job.log".to_owned(), ..Default::default() };
    say(&sender, Msg::WorkerEvent(event)).await;
    say(&sender, result("r1")).await;
    assert_eq!(stream.next_result().await.run_id, "r1");
    assert_eq!(stream.events("r1")[0].event_type, "job.log");
    assert!(stream.events("r2").is_empty());
    assert_eq!(stream.seen().len(), 3);

    drop(sender);
    stream.ended().await.unwrap();
}

#[tokio::test]
async fn ends_a_stream_in_each_way() {
    let scheduler = FakeScheduler::start().await;
    let (_sender, inbound) = open(&scheduler).await;
    scheduler.accept().await.end_ok();
    assert!(inbound.unwrap().message().await.unwrap().is_none());

    let (_sender, inbound) = open(&scheduler).await;
    scheduler.accept().await.fail(Status::failed_precondition("not_leader:a:1")).await;
    assert_eq!(inbound.unwrap().message().await.unwrap_err().message(), "not_leader:a:1");

    let (_sender, inbound) = open(&scheduler).await;
    let stream = scheduler.accept().await;
    stream.drop_connection();
    assert!(inbound.unwrap().message().await.is_err());

    scheduler.refuse_next(Status::unauthenticated("no"));
    assert_eq!(open(&scheduler).await.1.unwrap_err().code(), Code::Unauthenticated);
    assert!(open(&scheduler).await.1.is_ok());
}

#[tokio::test]
async fn stops_and_listens_again_at_the_same_port() {
    let mut scheduler = FakeScheduler::start().await;
    let addr = scheduler.addr();
    let (_sender, inbound) = open(&scheduler).await;
    let _stream = scheduler.accept().await;
    scheduler.stop().await;
    assert!(inbound.unwrap().message().await.is_err());
    let endpoint = Channel::from_shared(format!("http://{addr}")).unwrap();
    assert!(endpoint.connect().await.is_err());
    scheduler.restart().await;
    assert_eq!(scheduler.addr(), addr);
    assert!(open(&scheduler).await.1.is_ok());
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_stream() {
    let scheduler = FakeScheduler::start_with_decode_limit(1024).await;
    let (sender, _inbound) = open(&scheduler).await;
    let mut stream = scheduler.accept().await;
    let big = TaskExecutionResult { output_payload: vec![0; 2048].into(), ..Default::default() };
    say(&sender, Msg::RunResult(big)).await;
    assert_eq!(stream.ended().await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
#[should_panic(expected = "the worker ended its stream before a result came; received 1: registration")]
async fn says_what_it_waited_for() {
    let scheduler = FakeScheduler::start().await;
    let (sender, _inbound) = open(&scheduler).await;
    let mut stream = scheduler.accept().await;
    say(&sender, Msg::WorkerRegistration(WorkerRegistration::default())).await;
    drop(sender);
    stream.next_result().await;
}

/// A worker that waits for ever says so every ten seconds, and must not keep the test waiting with it.
#[tokio::test(start_paused = true)]
#[should_panic(expected = "a result did not come within 30 s")]
async fn heartbeats_do_not_keep_a_wait_alive() {
    let scheduler = FakeScheduler::start().await;
    let (sender, _inbound) = open(&scheduler).await;
    let mut stream = scheduler.accept().await;
    let beat = async {
        loop {
            let heartbeat = WorkerRegistration { is_heartbeat: true, ..Default::default() };
            say(&sender, Msg::WorkerRegistration(heartbeat)).await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    };
    tokio::select! {
        result = stream.next_result() => drop(result),
        () = beat => {}
    }
}
