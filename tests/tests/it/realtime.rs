//! Realtime sessions (contract §3.9).

use std::{future::pending, num::NonZeroU32, sync::Arc, time::Duration};

use gen_worker::{
    Call, Function, Ports, RealtimeSocket, ResourceRequirements, RuntimeConfig, Worker, WorkerError,
};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig};
use gen_worker_proto::{
    frontend::{self, frontend_service_client::FrontendServiceClient, realtime_proxy_message::Msg as Said},
    scheduler::{self as v1, worker_scheduler_message::Msg},
};
use gen_worker_status::{Status, StatusConfig};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, WorkerSettings};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

use super::{CONFORMANCE, status::get, worker};

/// Long enough that no test reaches it by itself.
const HOUR: &str = "3600";

fn open(session_id: &str, function: &str) -> v1::RealtimeOpenCommand {
    v1::RealtimeOpenCommand {
        session_id: session_id.into(),
        function_name: function.into(),
        ..Default::default()
    }
}

async fn open_mirror(stream: &mut WorkerStream, session_id: &str) {
    stream.send(Msg::RealtimeOpenCmd(open(session_id, "mirror"))).await;
}

async fn say(stream: &mut WorkerStream, session_id: &str, data: impl Into<Vec<u8>>, is_text: bool) {
    let data = data.into().into();
    stream.send(Msg::RealtimeFrame(v1::RealtimeFrame { session_id: session_id.into(), data, is_text })).await;
}

async fn hang_up(stream: &mut WorkerStream, session_id: &str) {
    let close = v1::RealtimeCloseCommand { session_id: session_id.into(), reason: String::new() };
    stream.send(Msg::RealtimeCloseCmd(close)).await;
}

/// The next frame: its session, its data, and whether it is text. A close instead fails the test.
async fn next_frame(stream: &mut WorkerStream) -> (String, Vec<u8>, bool) {
    let frame = stream.wait_for("a frame", |m| match m {
        Msg::RealtimeFrame(frame) => Some((frame.session_id, frame.data.to_vec(), frame.is_text)),
        Msg::RealtimeCloseCmd(close) => panic!("closed: {}", close.reason),
        _ => None,
    });
    frame.await
}

/// The session and the reason of the next close.
async fn next_close(stream: &mut WorkerStream) -> (String, String) {
    let close = stream.wait_for("a close", |m| match m {
        Msg::RealtimeCloseCmd(close) => Some((close.session_id, close.reason)),
        _ => None,
    });
    close.await
}

fn closed(session_id: &str, reason: &str) -> (String, String) {
    (session_id.to_owned(), reason.to_owned())
}

#[tokio::test]
async fn frames_come_back_as_the_kind_they_were() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", [0xff, 0], false).await;
    say(&mut stream, "s", "häll", true).await;
    assert_eq!(next_frame(&mut stream).await, ("s".into(), vec![0xff, 0], false));
    assert_eq!(next_frame(&mut stream).await, ("s".into(), "häll".into(), true));
    hang_up(&mut stream, "s").await;
    assert_eq!(next_close(&mut stream).await, closed("s", "completed"));
}

/// The original's inbox took 16 frames, and lost the rest and the end.
#[tokio::test]
async fn a_burst_comes_back_whole_and_so_does_the_end() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_CANCEL_GRACE_SECONDS", HOUR)]).await;
    open_mirror(&mut stream, "s").await;
    for n in 0..1_000_u32 {
        say(&mut stream, "s", n.to_be_bytes(), false).await;
    }
    hang_up(&mut stream, "s").await;
    for n in 0..1_000_u32 {
        assert_eq!(next_frame(&mut stream).await.1, n.to_be_bytes());
    }
    assert_eq!(next_close(&mut stream).await, closed("s", "completed"));
}

#[tokio::test]
async fn sessions_do_not_hear_each_other() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    open_mirror(&mut stream, "a").await;
    open_mirror(&mut stream, "b").await;
    say(&mut stream, "nobody", "lost", true).await;
    say(&mut stream, "b", "for b", true).await;
    assert_eq!(next_frame(&mut stream).await, ("b".into(), "for b".into(), true));
    say(&mut stream, "a", "fail", true).await;
    assert_eq!(next_close(&mut stream).await, closed("a", "error:ValidationError"));
    say(&mut stream, "b", "still here", true).await;
    assert_eq!(next_frame(&mut stream).await.0, "b");
}

#[tokio::test]
async fn what_cannot_be_opened_is_closed_with_the_reason() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_CONCURRENCY", "1")]).await;
    for (open, reason) in [
        (open("s", "nope"), "unknown_function"),
        (open("s", "echo"), "unknown_function"),
        (
            v1::RealtimeOpenCommand { tenant_id: "a\nb".into(), ..open("s", "mirror") },
            "error:ValidationError",
        ),
    ] {
        stream.send(Msg::RealtimeOpenCmd(open)).await;
        assert_eq!(next_close(&mut stream).await, closed("s", reason));
    }
    open_mirror(&mut stream, "first").await;
    open_mirror(&mut stream, "second").await;
    assert_eq!(next_close(&mut stream).await, closed("second", "worker busy"));
    stream.run("r", "echo", json!({"text": ""})).await;
    assert_eq!(stream.next_result().await.error_message, "Worker concurrency limit reached (1).");
    hang_up(&mut stream, "first").await;
    assert_eq!(next_close(&mut stream).await, closed("first", "completed"));
    stream.run("r", "mirror", json!({})).await;
    assert_eq!(stream.next_result().await.error_message, "Unknown function requested: mirror");
}

#[tokio::test]
async fn a_session_that_asks_too_much_is_told() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_MAX_WS_FRAME_BYTES", "4")]).await;
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", "1234", true).await;
    assert_eq!(next_frame(&mut stream).await.1, b"1234");
    say(&mut stream, "s", "12345", true).await;
    assert_eq!(next_close(&mut stream).await, closed("s", "frame_too_large"));
    open_mirror(&mut stream, "t").await;
    say(&mut stream, "t", [0xff], true).await;
    assert_eq!(next_close(&mut stream).await, closed("t", "invalid_text"));
}

#[tokio::test]
async fn a_session_whose_frames_nobody_takes_is_told() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_WS_BUFFER_BYTES", "100")]).await;
    open_mirror(&mut stream, "s").await;
    // The stream is not read meanwhile, so that sooner or later nothing moves any more.
    for _ in 0..400 {
        say(&mut stream, "s", vec![0; 64 << 10], false).await;
    }
    assert_eq!(next_close(&mut stream).await, closed("s", "overloaded"));
}

#[tokio::test]
async fn silence_ends_a_session() {
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_WS_IDLE_SECONDS", "0.2")]).await;
    open_mirror(&mut stream, "s").await;
    assert_eq!(next_close(&mut stream).await, closed("s", "idle_timeout"));
}

#[tokio::test]
async fn a_sessions_deadline_is_enforced() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let timed = v1::RealtimeOpenCommand { timeout_ms: 50, ..open("s", "mirror") };
    stream.send(Msg::RealtimeOpenCmd(timed)).await;
    assert_eq!(next_close(&mut stream).await, closed("s", "error:TimeoutError"));
}

#[tokio::test]
async fn a_drain_lets_a_session_finish() {
    let (_scheduler, mut worker, mut stream) = worker(&[("WORKER_DRAIN_TIMEOUT_SECONDS", HOUR)]).await;
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", "before", true).await;
    next_frame(&mut stream).await;
    worker.terminate().await;
    let draining = stream.next_registration().await;
    assert!(draining.active_runs.is_empty(), "a session is no run");
    open_mirror(&mut stream, "late").await;
    assert_eq!(next_close(&mut stream).await, closed("late", "worker busy"));
    say(&mut stream, "s", "meanwhile", true).await;
    assert_eq!(next_frame(&mut stream).await.1, b"meanwhile");
    hang_up(&mut stream, "s").await;
    assert_eq!(next_close(&mut stream).await, closed("s", "completed"));
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_drain_that_does_not_wait_ends_a_session() {
    let (_scheduler, mut worker, mut stream) = worker(&[]).await;
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", "x", true).await;
    next_frame(&mut stream).await;
    worker.terminate().await;
    assert_eq!(next_close(&mut stream).await, closed("s", "drain"));
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_session_ends_with_its_stream() {
    let (scheduler, _worker, mut stream) = worker(&[]).await;
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", "x", true).await;
    next_frame(&mut stream).await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    assert_eq!(next_close(&mut stream).await, closed("s", "stream_lost"));
}

#[tokio::test]
async fn a_session_that_is_open_is_not_opened_twice() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    open_mirror(&mut stream, "s").await;
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", "once", true).await;
    assert_eq!(next_frame(&mut stream).await, ("s".into(), b"once".to_vec(), true));
    hang_up(&mut stream, "s").await;
    assert_eq!(next_close(&mut stream).await, closed("s", "completed"));
    open_mirror(&mut stream, "s").await;
    say(&mut stream, "s", "again", true).await;
    assert_eq!(next_frame(&mut stream).await.1, b"again");
}

#[tokio::test]
async fn a_handler_that_does_not_heed_the_close_is_ended_and_gives_its_place_back() {
    let deaf = Function::realtime("deaf", "tests")
        .resources(ResourceRequirements { max_concurrency: NonZeroU32::new(1), ..Default::default() })
        .asynchronous(|_: Call<RealtimeSocket>| pending::<Result<(), WorkerError>>())
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let worker = Embedded::start(Worker::builder(settings).function(deaf));
    let mut stream = scheduler.accept().await;
    for session_id in ["first", "second"] {
        loop {
            stream.send(Msg::RealtimeOpenCmd(open(session_id, "deaf"))).await;
            hang_up(&mut stream, session_id).await;
            let (closed, reason) = next_close(&mut stream).await;
            assert_eq!(closed, session_id);
            if reason == "error:CanceledError" {
                break;
            }
            assert_eq!(reason, "worker busy", "only its place is still to be given back");
        }
    }
    worker.leave(stream).await;
}

/// No step takes this long unless it never happens.
const PATIENCE: Duration = Duration::from_secs(60);

fn proxied(msg: Said) -> frontend::RealtimeProxyMessage {
    frontend::RealtimeProxyMessage { msg: Some(msg) }
}

/// From a caller of the orchestrator to the handler and back.
#[tokio::test]
async fn a_caller_talks_to_a_handler_through_the_orchestrator() {
    let data = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(OrchestratorConfig::local(data.path())).await.unwrap();
    let address = orchestrator.grpc_addr().to_string();
    let _worker = WorkerSettings::anywhere(CONFORMANCE).set("SCHEDULER_ADDR", &address).start();
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut client = FrontendServiceClient::new(channel);
    let spoken = async {
        let (said, mut heard) = loop {
            let (said, messages) = mpsc::channel(1);
            let open = frontend::RealtimeOpen {
                session_id: "s".into(),
                function_name: "mirror".into(),
                ..Default::default()
            };
            said.send(proxied(Said::Open(open))).await.unwrap();
            match client.realtime_session(ReceiverStream::new(messages)).await {
                Ok(heard) => break (said, heard.into_inner()),
                // The worker has not come yet.
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
        };
        let frame = |n: u32| {
            let data = vec![n as u8; 4_000].into();
            Said::Frame(frontend::RealtimeFrame { session_id: "s".into(), data, is_text: false })
        };
        let speak = async {
            // Many more than a handler may have unsent, and fewer bytes than are kept for it.
            for n in 0..2_000 {
                said.send(proxied(frame(n))).await.unwrap();
            }
        };
        let listen = async {
            for n in 0..2_000 {
                assert_eq!(heard.message().await.unwrap().unwrap().msg.unwrap(), frame(n));
            }
        };
        tokio::join!(speak, listen);
        drop(said);
        let close = heard.message().await.unwrap().unwrap().msg.unwrap();
        let completed = frontend::RealtimeClose { session_id: "s".into(), reason: "completed".into() };
        assert_eq!(close, Said::Close(completed));
        assert_eq!(heard.message().await.unwrap(), None);
    };
    timeout(PATIENCE, spoken).await.unwrap();
    orchestrator.stop().await;
}

/// Frames of a handler that ends while they wait: more than the stream's window and the places in the worker take, and not more
/// than those and the socket.
const LAST_WORDS: usize = 75;

#[tokio::test]
async fn a_name_that_is_opened_again_during_the_last_words_mixes_nothing() {
    let talks = Function::realtime("talks", "tests")
        .asynchronous(|call: Call<RealtimeSocket>| async move {
            for n in 0..LAST_WORDS {
                let mut frame = vec![0; 512 << 10];
                frame[0] = n as u8;
                call.input.send_bytes(frame).await;
            }
            Ok::<_, WorkerError>(())
        })
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let settings = RuntimeConfig { ws_buffer: 100, ..Embedded::settings(&scheduler.addr().to_string()) };
    let config = StatusConfig { http_addr: Some("127.0.0.1:0".to_owned()), ..StatusConfig::default() };
    let status = Status::open(&config, Vec::new()).unwrap().unwrap();
    let address = status.address().unwrap();
    let ports = Ports { observer: Some(Arc::new(status)), ..Ports::default() };
    let worker = Embedded::start(Worker::builder(settings).ports(ports).function(talks));
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    stream.send(Msg::RealtimeOpenCmd(open("s", "talks"))).await;
    let ended = r#"gen_worker_runs_total{function="talks",outcome="success"} 1"#;
    while !get(address, "/metrics").await.1.contains(ended) {}
    while !get(address, "/metrics").await.1.contains("gen_worker_runs_in_flight 0") {}

    // Asked for thrice, and what is said to it is more than the first may hold.
    for function in ["talks", "nope", "talks"] {
        stream.send(Msg::RealtimeOpenCmd(open("s", function))).await;
        for _ in 0..9 {
            say(&mut stream, "s", "for the second", true).await;
        }
    }
    hang_up(&mut stream, "s").await;
    for n in 0..LAST_WORDS {
        assert_eq!(next_frame(&mut stream).await.1[0], n as u8);
    }
    assert_eq!(next_close(&mut stream).await, closed("s", "completed"));
    assert_eq!(next_close(&mut stream).await, closed("s", "worker busy"));
    stream.send(Msg::RealtimeOpenCmd(open("s", "talks"))).await;
    for n in 0..LAST_WORDS {
        assert_eq!(next_frame(&mut stream).await.1[0], n as u8);
    }
    assert_eq!(next_close(&mut stream).await, closed("s", "completed"));
    worker.leave(stream).await;
}
