//! Realtime sessions through the frontend service, with a scripted worker.

use bytes::Bytes;
use gen_worker_core::TenantId;
use gen_worker_net::{Method, StatusCode};
use gen_worker_proto::{
    frontend::{self, frontend_service_client::FrontendServiceClient, realtime_proxy_message::Msg as Said},
    scheduler::{self as v1, worker_scheduler_message::Msg},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

use crate::harness::{ALL, Harness, PATIENCE, Worker};

/// A caller's end of a session.
struct Caller {
    outbound: mpsc::Sender<frontend::RealtimeProxyMessage>,
    inbound: Streaming<frontend::RealtimeProxyMessage>,
}

fn opening(session_id: &str) -> frontend::RealtimeOpen {
    frontend::RealtimeOpen {
        session_id: session_id.to_owned(),
        function_name: "f".to_owned(),
        user_id: "u".to_owned(),
        timeout_ms: 1500,
        ..Default::default()
    }
}

fn frame(session_id: &str, data: impl Into<Bytes>, is_text: bool) -> Said {
    Said::Frame(frontend::RealtimeFrame { session_id: session_id.to_owned(), data: data.into(), is_text })
}

fn closed(session_id: &str, reason: &str) -> Option<Said> {
    Some(Said::Close(frontend::RealtimeClose {
        session_id: session_id.to_owned(),
        reason: reason.to_owned(),
    }))
}

impl Caller {
    async fn start(harness: &Harness, first: Said, token: &str) -> Result<Self, Status> {
        let (outbound, messages) = mpsc::channel(16);
        outbound.send(frontend::RealtimeProxyMessage { msg: Some(first) }).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(messages));
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        request.metadata_mut().insert("traceparent", parent.parse().unwrap());
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = FrontendServiceClient::new(harness.channel().await);
        let inbound = client.realtime_session(request).await?.into_inner();
        Ok(Self { outbound, inbound })
    }

    async fn open(harness: &Harness, session_id: &str) -> Self {
        Self::start(harness, Said::Open(opening(session_id)), "").await.unwrap()
    }

    async fn say(&self, msg: Said) {
        self.outbound.send(frontend::RealtimeProxyMessage { msg: Some(msg) }).await.unwrap();
    }

    /// What is heard next; `None`: nothing any more.
    async fn next(&mut self) -> Option<Said> {
        let message = timeout(PATIENCE, self.inbound.message()).await.unwrap();
        message.unwrap().map(|message| message.msg.unwrap())
    }
}

/// The next session that the worker is asked to serve.
async fn opened(worker: &mut Worker) -> v1::RealtimeOpenCommand {
    loop {
        if let Msg::RealtimeOpenCmd(open) = worker.next().await {
            return open;
        }
    }
}

async fn close(worker: &Worker, session_id: &str, reason: &str) {
    let close = v1::RealtimeCloseCommand { session_id: session_id.to_owned(), reason: reason.to_owned() };
    worker.say(Msg::RealtimeCloseCmd(close)).await;
}

async fn say(worker: &Worker, session_id: &str, data: &'static str) {
    let frame = v1::RealtimeFrame { session_id: session_id.to_owned(), data: data.into(), is_text: true };
    worker.say(Msg::RealtimeFrame(frame)).await;
}

#[tokio::test]
async fn frames_go_both_ways_and_the_last_word_ends_the_call() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    let mut caller = Caller::open(&harness, "s").await;
    let open = opened(&mut worker).await;
    assert_eq!((open.function_name.as_str(), open.user_id.as_str(), open.timeout_ms), ("f", "u", 1500));
    assert!(open.traceparent.contains("0af7651916cd43dd8448eb211c80319c"), "{}", open.traceparent);
    assert_ne!(open.session_id, "s", "callers may choose the same");
    caller.say(frame("s", "\u{0}a", false)).await;
    caller.say(frame("s", "b", true)).await;
    for (data, is_text) in [("\u{0}a", false), ("b", true)] {
        let expected = v1::RealtimeFrame { session_id: open.session_id.clone(), data: data.into(), is_text };
        assert_eq!(worker.next().await, Msg::RealtimeFrame(expected));
    }
    say(&worker, &open.session_id, "x").await;
    assert_eq!(caller.next().await, Some(frame("s", "x", true)));
    caller.say(closed("s", "").unwrap()).await;
    assert!(
        matches!(worker.next().await, Msg::RealtimeCloseCmd(close) if close.session_id == open.session_id)
    );
    say(&worker, &open.session_id, "y").await;
    close(&worker, &open.session_id, "closed").await;
    close(&worker, &open.session_id, "completed").await;
    assert_eq!(caller.next().await, Some(frame("s", "y", true)));
    assert_eq!(caller.next().await, closed("s", "closed"));
    assert_eq!(caller.next().await, closed("s", "completed"));
    assert_eq!(caller.next().await, None);
}

#[tokio::test]
async fn a_session_takes_the_place_of_a_run_until_its_handler_has_ended() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    let _caller = Caller::open(&harness, "").await;
    let open = opened(&mut worker).await;
    let refused = Caller::start(&harness, Said::Open(opening("t")), "").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
    let metrics = harness.send(Method::GET, "/metrics", &[], b"").await.bytes(1 << 20).await.unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("gen_worker_orchestrator_realtime_sessions{function=\"f\"} 1\n"), "{metrics}");
    let run_id = harness.submit("f", None).await;
    close(&worker, &open.session_id, "closed").await;
    close(&worker, &open.session_id, "error:ValueError").await;
    assert_eq!(worker.run().await.run_id, run_id);
}

#[tokio::test]
async fn a_caller_that_is_gone_is_a_close_and_a_worker_that_is_gone_is_said() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 0).await;
    let (gone, mut kept) = (Caller::open(&harness, "s").await, Caller::open(&harness, "s").await);
    let (first, second) = (opened(&mut worker).await.session_id, opened(&mut worker).await.session_id);
    drop(gone);
    let Msg::RealtimeCloseCmd(close) = worker.next().await else { panic!("no close came") };
    assert!(close.session_id == first || close.session_id == second);
    drop(worker);
    assert_eq!(kept.next().await, closed("s", "stream_lost"));
    assert_eq!(kept.next().await, None);
}

#[tokio::test]
async fn who_does_not_read_loses_the_session_not_the_worker() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 0).await;
    let mut caller = Caller::open(&harness, "s").await;
    let id = opened(&mut worker).await.session_id;
    let data = Bytes::from(vec![0; 1 << 20]);
    // More than what the orchestrator keeps and what lies in the connections' windows.
    for _ in 0..64 {
        let frame = v1::RealtimeFrame { session_id: id.clone(), data: data.clone(), is_text: false };
        worker.say(Msg::RealtimeFrame(frame)).await;
    }
    assert!(matches!(worker.next().await, Msg::RealtimeCloseCmd(close) if close.session_id == id));
    close(&worker, &id, "closed").await;
    close(&worker, &id, "completed").await;
    let mut heard = 0;
    loop {
        match caller.next().await {
            Some(Said::Frame(_)) => heard += 1,
            last => {
                assert_eq!(last, closed("s", "overloaded"));
                break;
            }
        }
    }
    assert_eq!(caller.next().await, None, "that was the last word");
    assert!(heard >= 15, "what there was room for is heard: {heard}");
}

#[tokio::test]
async fn what_is_wrong_with_a_first_message_is_said() {
    let harness = Harness::start().await;
    let _worker = harness.worker(&ALL, 0).await;
    let bad =
        [frame("s", "x", true), Said::Open(opening("a b")), Said::Open(frontend::RealtimeOpen::default())];
    for first in bad {
        let refused = Caller::start(&harness, first, "").await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    let mut other = opening("s");
    other.function_name = "g".to_owned();
    let refused = Caller::start(&harness, Said::Open(other), "").await.err().unwrap();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_tenant_has_its_own_sessions_and_files_and_so_many_of_them() {
    let tenant = |name: &str| (TenantId::parse(name).unwrap(), format!("token-{name}").as_str().into());
    let harness = Harness::with(|config| {
        config.tenant_tokens = vec![tenant("a"), tenant("b")];
        config.api_token = Some("operator".into());
        config.limits.max_running = Some(1);
    })
    .await;
    let mut worker = harness.worker(&ALL, 0).await;
    let start = |name: &'static str, token| {
        let open = frontend::RealtimeOpen { tenant_id: name.to_owned(), ..opening("s") };
        Caller::start(&harness, Said::Open(open), token)
    };
    let mut caller = start("", "token-a").await.unwrap();
    let open = opened(&mut worker).await;
    assert_eq!(open.tenant_id, "a");
    let _b = start("b", "token-b").await.unwrap();
    for (name, token, code) in [
        ("a", "token-a", Code::ResourceExhausted),
        ("a", "token-b", Code::PermissionDenied),
        ("a", "", Code::Unauthenticated),
    ] {
        assert_eq!(start(name, token).await.err().unwrap().code(), code, "{name} {token}");
    }
    let write = format!("/api/v1/file/runs/{}/outputs/x.txt", open.session_id);
    let bearer = format!("Bearer {}", open.file_token);
    for (token, status) in
        [(format!("{bearer}x"), StatusCode::UNAUTHORIZED), (bearer.clone(), StatusCode::OK)]
    {
        let saved = harness.send(Method::PUT, &write, &[("authorization", &token)], b"x").await;
        assert_eq!(saved.status(), status);
    }
    let path = format!("/v1/files/runs/{}/outputs/x.txt", open.session_id);
    for (token, status) in [("Bearer token-a", StatusCode::OK), ("Bearer token-b", StatusCode::NOT_FOUND)] {
        let read = harness.send(Method::GET, &path, &[("authorization", token)], b"").await;
        assert_eq!(read.status(), status);
    }
    close(&worker, &open.session_id, "completed").await;
    assert_eq!(caller.next().await, closed("s", "completed"));
    let late = harness.send(Method::PUT, &write, &[("authorization", &bearer)], b"x").await;
    assert_eq!(late.status(), StatusCode::UNAUTHORIZED, "the token ends with its session");
    start("", "token-a").await.unwrap();
}
