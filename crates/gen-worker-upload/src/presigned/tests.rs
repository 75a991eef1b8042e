//! A presigned `PUT` against stores on loopback, good ones and bad.

use std::{collections::HashSet, future::pending, sync::mpsc, time::Duration};

use futures_util::FutureExt;
use gen_worker_core::{Algorithm, ByteSize, Digest, FailureKind, RawOutput, ports::OutputStore};
use gen_worker_net::HttpClient;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::{
    config::UploadConfig,
    target::OutputTargets,
    testing::{Store, answer, bytes, client, client_allowing, client_waiting, config, hasty, watch},
};

/// Little patience with a silent peer.
const IMPATIENT: Duration = Duration::from_millis(200);

fn targets(client: HttpClient) -> OutputTargets {
    let config = UploadConfig { max_upload: ByteLimit::Max(ByteSize::mib(4)), ..config() };
    OutputTargets::new(&config, Transfers::new(&config, client))
}

/// Stores `output` at the path of a presigned URL, with these further fields of `output_upload`.
async fn store(store: &Store, fields: &str, output: RawOutput) -> Result<StoredOutput, JobFailure> {
    let url = format!("{}/bucket/key?X-Amz-Signature=secret-query", store.url);
    let target = targets(client()).target(format!(r#"{{"put_url": "{url}"{fields}}}"#).as_str().into())?;
    target.store(&output, &watch().0).await
}

fn png() -> RawOutput {
    RawOutput::bytes("data", "image/png")
}

#[tokio::test]
async fn an_output_is_put_as_it_was_signed() {
    let there = Store::answering([]).await;
    let fields = r#", "headers": {"x-amz-meta-a": "1", "Content-Type": "image/x-signed"}"#;
    let stored = store(&there, fields, png()).await.unwrap();

    let heard = there.heard().pop().unwrap();
    assert_eq!((heard.method.as_str(), &heard.body[..]), ("PUT", &b"data"[..]));
    assert_eq!(heard.uri, "/bucket/key?X-Amz-Signature=secret-query");
    assert_eq!(heard.header("x-amz-meta-a"), "1");
    assert_eq!(heard.header("content-type"), "image/x-signed");
    assert_eq!(heard.header("content-length"), "4");
    let mut names: Vec<_> = heard.headers.keys().map(|name| name.as_str()).collect();
    names.sort();
    let of_http = ["accept", "accept-encoding", "content-length", "content-type", "host", "user-agent"];
    assert_eq!(names, [&of_http[..], &["x-amz-meta-a"]].concat());
    assert_eq!(stored.url, format!("{}/bucket/key", there.url));
    assert_eq!((stored.size_bytes, stored.content_type.as_str()), (4, "image/x-signed"));
    assert_eq!(stored.sha256, Digest::of(Algorithm::Sha256, b"data").hex());
}

#[tokio::test]
async fn the_public_url_and_the_stores_version_are_passed_on() {
    let mut created = answer(204, "");
    created.headers_mut().insert("etag", r#""abc""#.parse().unwrap());
    let there = Store::answering([created]).await;
    let stored = store(&there, r#", "public_url": "https://cdn.example/key""#, png()).await.unwrap();
    assert_eq!(stored.url, "https://cdn.example/key");
    assert_eq!((stored.etag.as_deref(), stored.content_type.as_str()), (Some(r#""abc""#), "image/png"));
}

#[tokio::test]
async fn a_file_is_streamed_and_sent_whole_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let data = bytes(3 << 20);
    std::fs::write(&path, &data).unwrap();
    let there = Store::answering([answer(503, ""), answer(408, "")]).await;
    let stored = store(&there, "", RawOutput::file(path, "video/mp4")).await.unwrap();
    assert_eq!(stored.size_bytes, data.len() as u64);
    let heard = there.heard();
    assert!(heard.len() == 3 && heard.iter().all(|heard| heard.body == data));
    let ports: HashSet<_> = heard.iter().map(|heard| heard.port).collect();
    assert_eq!(ports.len(), 3, "each further try has a connection of its own");
}

#[tokio::test]
async fn a_missing_output_fails_the_run() {
    for (status, kind, tries) in [
        (500, FailureKind::Retryable, 3),
        (429, FailureKind::Retryable, 3),
        (403, FailureKind::Auth, 1),
        (400, FailureKind::Validation, 1),
        (307, FailureKind::Validation, 1),
    ] {
        let mut answers = Vec::new();
        answers.resize_with(tries, || {
            let mut answer = answer(status, "secret-query");
            answer.headers_mut().insert("location", "/elsewhere".parse().unwrap());
            answer
        });
        let there = Store::answering(answers).await;
        let failure = store(&there, r#", "headers": {"x-key": "secret-header"}"#, png()).await.unwrap_err();
        assert_eq!((failure.kind, there.heard().len()), (kind, tries), "{status}");
        let shown = format!("{failure:?} {} {}", failure.error_message(), failure.chain());
        assert!(!shown.contains("secret-") && !shown.contains("127.0.0.1"), "{shown}");
    }
}

#[tokio::test]
async fn a_name_is_judged_by_the_address_it_leads_to() {
    let there = Store::answering([]).await;
    let url = there.url.replace("127.0.0.1", "localhost");
    let target = targets(client_allowing(&[])).target(format!(r#"{{"put_url": "{url}"}}"#).as_str().into());
    let failure = target.unwrap().store(&png(), &watch().0).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Validation);
    assert!(there.heard().is_empty());
}

#[tokio::test]
async fn nothing_is_sent_of_what_is_refused_here() {
    let there = Store::answering([]).await;
    let large = store(&there, "", RawOutput::bytes(bytes((4 << 20) + 1), "image/png")).await;
    assert_eq!(large.unwrap_err().kind, FailureKind::Validation);
    let untyped = store(&there, "", RawOutput::bytes("data", "image/png\r\nx-evil: 1")).await;
    assert_eq!(untyped.unwrap_err().kind, FailureKind::Internal);
    let unreadable = store(&there, "", RawOutput::file("/nowhere", "image/png")).await;
    assert_eq!(unreadable.unwrap_err().kind, FailureKind::Internal);
    assert!(there.heard().is_empty());
}

/// A store whose first address has run out, and a signer that answers so for each ask.
async fn expired(signer: impl Fn(&Store) -> String) -> (Store, Store) {
    let there = Store::deciding(|heard| {
        let good = heard.uri.query() == Some("s=2");
        std::future::ready(if good { answer(200, "") } else { answer(403, "secret-query") }).boxed()
    })
    .await;
    let says = signer(&there);
    let signer = Store::deciding(move |_| std::future::ready(answer(200, &says)).boxed()).await;
    (there, signer)
}

#[tokio::test]
async fn an_address_that_ran_out_is_renewed() {
    let (directory, data) = (tempfile::tempdir().unwrap(), bytes(700_000));
    let path = directory.path().join("out");
    std::fs::write(&path, &data).unwrap();
    let (there, signer) =
        expired(|there| format!(r#"{{"put_url": "{}/new?s=2", "headers": {{"x-signed": "2"}}}}"#, there.url))
            .await;
    let fields =
        format!(r#", "headers": {{"x-signed": "1"}}, "refresh_url": "{}/sign?t=secret-query""#, signer.url);
    let stored = store(&there, &fields, RawOutput::file(path, "video/mp4")).await.unwrap();
    assert_eq!(stored.url, format!("{}/new", there.url));
    assert_eq!(stored.sha256, Digest::of(Algorithm::Sha256, &data).hex());
    let signed: Vec<_> = there.heard().iter().map(|heard| heard.header("x-signed").to_owned()).collect();
    assert_eq!(signed, ["1", "2"]);
    assert!(there.heard().iter().all(|heard| heard.body == data));
    let [asked] = &signer.heard()[..] else { panic!("asked once") };
    assert_eq!((asked.method.as_str(), asked.uri.path()), ("POST", "/sign"));
    assert_eq!(asked.header("authorization"), "");
}

#[tokio::test]
async fn a_renewal_that_does_not_help_fails_the_run() {
    for (says, kind, asked) in [
        (r#"{"put_url": "THERE/new?s=1"}"#, FailureKind::Auth, 3),
        (r#"{"put_url": "http://10.0.0.1/secret-query"}"#, FailureKind::Validation, 1),
        (r#"{"url": "secret-query"}"#, FailureKind::Validation, 1),
        ("secret-query", FailureKind::Validation, 1),
    ] {
        let (there, signer) = expired(|there| says.replace("THERE", &there.url)).await;
        let fields = format!(r#", "refresh_url": "{}""#, signer.url);
        let failure = store(&there, &fields, png()).await.unwrap_err();
        assert_eq!((failure.kind, signer.heard().len()), (kind, asked), "{says}: {failure:?}");
        assert!(!failure.chain().contains("secret-query"), "{failure:?}");
    }
}

#[tokio::test]
async fn a_place_is_free_while_a_server_asks_to_be_left_alone() {
    let (busy, ready) = (Store::answering([patience(answer(503, ""))]).await, Store::answering([]).await);
    let config = UploadConfig { concurrency: 1, ..config() };
    let targets = OutputTargets::new(&config, Transfers::new(&config, client()));
    let to = |store: &Store| targets.target(format!(r#"{{"put_url": "{}/k"}}"#, store.url).as_str().into());
    let [busy, ready] = [to(&busy).unwrap(), to(&ready).unwrap()];
    let (output, watch) = (png(), watch().0);
    let stored = tokio::select! {
        biased;
        _ = busy.store(&output, &watch) => panic!("it was to wait"),
        stored = ready.store(&output, &watch) => stored,
    };
    assert_eq!(stored.unwrap().size_bytes, 4);
}

/// An answer that asks for a minute.
fn patience(mut answer: axum::http::Response<axum::body::Body>) -> axum::http::Response<axum::body::Body> {
    answer.headers_mut().insert("retry-after", "60".parse().unwrap());
    answer
}

#[tokio::test]
async fn a_body_that_cannot_be_opened_again_fails_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    std::fs::write(&path, "data").unwrap();
    let removed = path.clone();
    let there = Store::deciding(move |_| {
        std::fs::remove_file(&removed).unwrap();
        std::future::ready(answer(503, "")).boxed()
    })
    .await;
    let failure = store(&there, "", RawOutput::file(path, "a/b")).await.unwrap_err();
    assert_eq!((failure.kind, there.heard().len()), (FailureKind::Retryable, 1));
}

/// What a raw server does with a connection, and what becomes of an output of 2 MiB sent there.
async fn served<F, S>(mut serve: S) -> Result<StoredOutput, JobFailure>
where
    S: FnMut(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/k?secret-query", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            serve(connection).await;
        }
    });
    let target =
        targets(client_waiting(IMPATIENT)).target(format!(r#"{{"put_url": "{url}"}}"#).as_str().into())?;
    target.store(&RawOutput::bytes(bytes(2 << 20), "a/b"), &watch().0).await
}

/// Reads a request to its end.
async fn read_all(connection: &mut TcpStream) {
    let (mut heard, mut buffer) = (0, vec![0; 64 << 10]);
    while heard < 2 << 20 {
        heard += connection.read(&mut buffer).await.unwrap();
    }
}

#[tokio::test]
async fn a_reset_after_the_last_byte_is_no_success() {
    let mut resets = 0;
    let stored = served(move |mut connection| {
        resets += 1;
        async move {
            read_all(&mut connection).await;
            if resets > 1 {
                connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            } else {
                connection.set_zero_linger().unwrap();
            }
        }
    })
    .await;
    assert_eq!(stored.unwrap().size_bytes, 2 << 20);
    let reset = |mut connection: TcpStream| async move { read_all(&mut connection).await };
    assert_eq!(served(reset).await.unwrap_err().kind, FailureKind::Retryable);
}

#[tokio::test]
async fn a_server_that_stops_reading_is_given_up() {
    let stops = |mut connection: TcpStream| async move {
        connection.read_exact(&mut [0; 1000]).await.unwrap();
        // It stays open, unread, until the client has had enough of it.
        connection.ready(Interest::ERROR).await.unwrap();
    };
    assert_eq!(served(stops).await.unwrap_err().kind, FailureKind::Retryable);
}

#[tokio::test]
async fn a_server_that_reads_slowly_is_waited_for() {
    let socket = TcpSocket::new_v4().unwrap();
    // What the system takes in the server's place would be sent at once.
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(8).unwrap();
    let url = format!("http://{}/k", listener.local_addr().unwrap());
    let (length, patience) = (16 << 20, Duration::from_secs(2));
    let client = client_waiting(patience);
    let by_hand = clock_by_hand();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let (mut heard, mut buffer) = (0, vec![0; 256 << 10]);
        while heard < length {
            heard += connection.read_exact(&mut buffer).await.unwrap();
            // All of it takes longer than the client waits while nothing moves.
            tokio::time::advance(patience / 50).await;
        }
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        // A head has come before the body. What was unread would reset the connection when it is closed.
        assert!(connection.read(&mut buffer).await.unwrap() > 0);
    });
    let targets = OutputTargets::new(&config(), Transfers::new(&config(), client));
    let target = targets.target(format!(r#"{{"put_url": "{url}"}}"#).as_str().into()).unwrap();
    let (output, watch) = (RawOutput::bytes(bytes(length), "a/b"), watch().0);
    let stored = tokio::select! {
        stored = target.store(&output, &watch) => stored.unwrap(),
        () = async { server.join_all().await; pending().await } => unreachable!("a client that left is heard of"),
    };
    assert_eq!(stored.size_bytes, length as u64);
    drop(by_hand);
}

/// From now on time passes when the test says so, and not by itself: tokio lets a paused clock run on when all its tasks
/// wait, but not while a blocking one is under way, which this one is until what comes back is dropped.
fn clock_by_hand() -> mpsc::Sender<()> {
    let (hold, held) = mpsc::channel();
    tokio::task::spawn_blocking(move || held.recv());
    tokio::time::pause();
    hold
}

#[tokio::test]
async fn an_answer_with_huge_headers_is_not_read() {
    let huge = |mut connection: TcpStream| async move {
        read_all(&mut connection).await;
        let header = format!("HTTP/1.1 200 OK\r\nx-huge: {}\r\n\r\n", "x".repeat(4 << 20));
        // The client hangs up in the middle of it.
        let _ = connection.write_all(header.as_bytes()).await;
    };
    assert_eq!(served(huge).await.unwrap_err().kind, FailureKind::Retryable);
}

#[tokio::test]
async fn a_success_before_the_last_byte_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    std::fs::write(&path, bytes(64 << 20)).unwrap();
    let outputs = [RawOutput::file(path, "a/b"), RawOutput::bytes(bytes(64 << 20), "a/b")];
    let (url, _server) = hasty().await;
    let config = UploadConfig { max_upload: ByteLimit::Unlimited, ..config() };
    let target = OutputTargets::new(&config, Transfers::new(&config, client_waiting(IMPATIENT)))
        .target(format!(r#"{{"put_url": "{url}/k"}}"#).as_str().into())
        .unwrap();
    for output in outputs {
        let failure = target.store(&output, &watch().0).await.unwrap_err();
        assert_eq!(failure.safe_message, "the store did not confirm the output");
    }
}
