//! Outputs at a real S3-compatible store, which checks signatures and their time.

use std::{sync::Arc, time::Duration};

use gen_worker_core::{
    Algorithm, CancelReason, Cancellation, Digest, Event, FailureKind, JobFailure, RawOutput,
    config::{ConfigErrors, Env},
    ports::{EventSink, OutputStore, StoredOutput, Watch},
    testing::RecordedEvents,
};
use gen_worker_net::{HttpClient, Method, NetConfig, Trust};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FaultProxy, SeaweedFs};
use gen_worker_tests::{pack, seaweed_program, unpack};
use gen_worker_upload::{OutputTargets, Transfers, UploadConfig};
use jiff::{SignedDuration, Timestamp};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::JoinSet,
};

use super::worker;

const BUCKET: &str = "outputs";
/// More than two parts.
const LARGE: usize = (33 << 20) + 4321;

/// `output_upload` for this key at this store.
fn told(store: &SeaweedFs, key: &str) -> Value {
    json!({"s3": {
        "bucket": BUCKET, "key": key, "region": "us-east-1", "endpoint": store.url(),
        "access_key_id": SeaweedFs::ACCESS_KEY_ID, "secret_access_key": SeaweedFs::SECRET_ACCESS_KEY,
    }})
}

fn client() -> HttpClient {
    let env = Env::from_iter([("WORKER_URL_ALLOW", "127.0.0.1"), ("WORKER_DOWNLOAD_RETRIES", "2")]);
    let mut errors = ConfigErrors::default();
    let client = HttpClient::new(NetConfig::from_env(&env, &mut errors)).unwrap();
    errors.into_result(client).unwrap()
}

fn targets() -> OutputTargets {
    let (env, mut errors) = (Env::default(), ConfigErrors::default());
    let config = UploadConfig::from_env(&env, &mut errors);
    OutputTargets::new(&config, Transfers::new(&config, client()))
}

fn watch(events: Arc<dyn EventSink>) -> Watch {
    Watch { cancellation: Cancellation::new(), events }
}

async fn store(output_upload: &Value, output: RawOutput) -> Result<StoredOutput, JobFailure> {
    let target = targets().target(output_upload.to_string().as_str().into())?;
    target.store(&output, &watch(Arc::<RecordedEvents>::default())).await
}

/// What anybody gets there.
async fn get(store: &SeaweedFs, path_and_query: &str) -> (u16, Vec<u8>) {
    let url = format!("{}/{path_and_query}", store.url()).parse().unwrap();
    let answer = client().request(Method::GET, url, Trust::Operator).send_retrying().await.unwrap();
    (answer.status().as_u16(), answer.bytes(1 << 30).await.unwrap().into())
}

/// The multipart uploads that are open, as XML.
async fn open_uploads(store: &SeaweedFs) -> String {
    let (status, body) = get(store, &format!("{BUCKET}?uploads=")).await;
    assert_eq!(status, 200);
    String::from_utf8(body).unwrap()
}

/// Whether the upload to this key that is open has a part.
async fn has_part(store: &SeaweedFs, key: &str) -> bool {
    let open = open_uploads(store).await;
    let id = open.split_once("<UploadId>").and_then(|(_, rest)| rest.split_once("</UploadId>"));
    match id {
        Some((id, _)) => {
            let (_, parts) = get(store, &format!("{BUCKET}/{key}?uploadId={id}")).await;
            String::from_utf8_lossy(&parts).contains("<PartNumber>")
        }
        None => false,
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// Where to put `key`, signed so many seconds ago for a minute.
fn signed(store: &SeaweedFs, key: &str, seconds_ago: i64) -> String {
    let endpoint = store.url().parse().unwrap();
    let bucket = Bucket::new(endpoint, UrlStyle::Path, BUCKET, "us-east-1").unwrap();
    let credentials = Credentials::new(SeaweedFs::ACCESS_KEY_ID, SeaweedFs::SECRET_ACCESS_KEY);
    let then = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
    bucket.put_object(Some(&credentials), key).sign_with_time(Duration::from_secs(60), &then).into()
}

/// Answers the first request with this JSON; its address.
async fn answering(json: &Value, server: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/sign", listener.local_addr().unwrap());
    let body = json.to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    server.spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(connection.read_u8().await.unwrap());
        }
        connection.write_all(answer.as_bytes()).await.unwrap();
    });
    url
}

/// Stops the network as soon as bytes move, and says so.
struct Moving {
    proxy: Arc<FaultProxy>,
    moves: Notify,
}

impl EventSink for Moving {
    fn emit(&self, _: Event) {
        self.proxy.pause();
        self.moves.notify_one();
    }
}

#[tokio::test]
async fn what_a_run_makes_is_at_the_store_whole() {
    let there = SeaweedFs::start(seaweed_program()).await;
    let url = there.url();
    let (_scheduler, worker, mut stream) =
        worker(&[("WORKER_URL_ALLOW", url.strip_prefix("http://").unwrap()), ("RUST_LOG", "trace")]).await;
    for (size, key) in [(0, "empty"), (70_000, "a b/c+d?é.bin"), (LARGE, "large")] {
        let payload = json!({"size": size, "content_type": "video/mp4", "output_upload": told(&there, key)});
        stream
            .send(Msg::RunRequest(v1::TaskExecutionRequest {
                run_id: "r".into(),
                function_name: "raw".into(),
                input_payload: pack(&payload).into(),
                ..Default::default()
            }))
            .await;
        let result = stream.next_result().await;
        assert!(result.success, "{result:?}");
        let mut stored: Value = unpack(&result.output_payload);
        let content = pattern(size);
        assert!(stored["etag"].take().is_string(), "{key}");
        let path = stored["url"].as_str().unwrap().strip_prefix(&format!("{url}/")).unwrap().to_owned();
        let expected = json!({
            "url": stored["url"], "key": key, "bucket": BUCKET, "size_bytes": size, "content_type": "video/mp4",
            "sha256": Digest::of(Algorithm::Sha256, &content).hex(), "etag": null,
        });
        assert_eq!(stored, expected);
        let (status, there) = get(&there, &path).await;
        assert!(status == 200 && there == content, "{key}: {status}, {} bytes", there.len());
    }
    let log = worker.log();
    for secret in [SeaweedFs::SECRET_ACCESS_KEY, "X-Amz-Signature", "partNumber"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn a_bucket_may_be_the_name_of_a_host() {
    let there = SeaweedFs::start(seaweed_program()).await;
    for (key, size) in [("small", 70_000), ("large", LARGE)] {
        let mut by_host = told(&there, key);
        by_host["s3"]["endpoint"] = there.url().replace("127.0.0.1", "localhost").into();
        by_host["s3"]["path_style"] = false.into();
        let stored = store(&by_host, RawOutput::bytes(pattern(size), "a/b")).await.unwrap();
        let host = there.url().replace("127.0.0.1", &format!("{BUCKET}.localhost"));
        assert_eq!(stored.url, format!("{host}/{key}"));
        let (status, content) = get(&there, &format!("{BUCKET}/{key}")).await;
        assert!(status == 200 && content == pattern(size), "{key}: {status}, {} bytes", content.len());
    }
}

#[tokio::test]
async fn what_the_store_refuses_is_said_and_leaves_nothing() {
    let there = SeaweedFs::start(seaweed_program()).await;
    store(&told(&there, "first"), RawOutput::bytes("x", "a/b")).await.unwrap();

    let mut wrong = told(&there, "wrong");
    wrong["s3"]["secret_access_key"] = "hunter2".into();
    let failure = store(&wrong, RawOutput::bytes(pattern(LARGE), "a/b")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Auth);
    assert!(failure.safe_message.contains("SignatureDoesNotMatch"), "{failure:?}");
    assert!(!failure.chain().contains("hunter2"));

    let proxy =
        Arc::new(FaultProxy::start(there.url().strip_prefix("http://").unwrap().parse().unwrap()).await);
    let mut cancelled = told(&there, "cancelled");
    cancelled["s3"]["endpoint"] = format!("http://{}", proxy.addr()).into();
    let target = targets().target(cancelled.to_string().as_str().into()).unwrap();
    let moving = Arc::new(Moving { proxy: proxy.clone(), moves: Notify::new() });
    let (watch, output) = (watch(moving.clone()), RawOutput::bytes(pattern(LARGE), "a/b"));
    let mut storing = target.store(&output, &watch);
    tokio::select! {
        stored = &mut storing => panic!("it cannot end: {stored:?}"),
        () = moving.moves.notified() => {}
    }
    assert!(open_uploads(&there).await.contains("<UploadId>"));
    proxy.drop_all();
    proxy.resume();
    watch.cancellation.cancel(CancelReason::User);
    assert_eq!(storing.await.unwrap_err().kind, FailureKind::Canceled);
    assert!(!open_uploads(&there).await.contains("<UploadId>"));
    for key in ["wrong", "cancelled"] {
        assert_eq!(get(&there, &format!("{BUCKET}/{key}")).await.0, 404, "{key}");
    }
}

#[tokio::test]
async fn a_worker_that_leaves_forgets_what_it_began() {
    let there = SeaweedFs::start(seaweed_program()).await;
    store(&told(&there, "first"), RawOutput::bytes("x", "a/b")).await.unwrap();
    let proxy = FaultProxy::start(there.url().strip_prefix("http://").unwrap().parse().unwrap()).await;
    let through = proxy.addr().to_string();
    let (_scheduler, mut worker, mut stream) = worker(&[
        ("WORKER_URL_ALLOW", &through),
        ("WORKER_UPLOAD_CONCURRENCY", "1"),
        ("WORKER_CANCEL_GRACE_SECONDS", "0"),
    ])
    .await;
    let mut to = told(&there, "left");
    to["s3"]["endpoint"] = format!("http://{through}").into();
    stream.run("r", "raw", json!({"size": 4 * LARGE, "output_upload": to})).await;
    while !has_part(&there, "left").await {}
    proxy.pause();
    worker.terminate().await;
    let result = stream.next_result().await;
    assert_eq!((result.error_type.as_str(), result.retryable), ("retryable", true));
    stream.ended().await.unwrap();
    // One connection began the upload; another is to end it, and is lost. By then the worker has nothing else left to do.
    while proxy.accepted() < 2 {
        tokio::task::yield_now().await;
    }
    stream.end_ok();
    proxy.resume();
    proxy.drop_all();
    assert!(worker.ended().await.success());
    assert!(!open_uploads(&there).await.contains("<UploadId>"));
    assert_eq!(get(&there, &format!("{BUCKET}/left")).await.0, 404);
}

#[tokio::test]
async fn an_address_that_ran_out_is_refused_and_renewed() {
    let (there, mut signer) = (SeaweedFs::start(seaweed_program()).await, JoinSet::new());
    let output = || RawOutput::bytes(pattern(70_000), "a/b");
    let mut to = json!({"put_url": signed(&there, "k", 120)});
    let refused = store(&to, output()).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Auth);
    assert!(!refused.chain().contains("X-Amz"), "{}", refused.chain());
    assert_eq!(get(&there, &format!("{BUCKET}/k")).await.0, 404);

    let renewed = json!({"put_url": signed(&there, "k", 0)});
    to["refresh_url"] = answering(&renewed, &mut signer).await.into();
    let stored = store(&to, output()).await.unwrap();
    assert_eq!(stored.url, format!("{}/{BUCKET}/k", there.url()));
    assert!(get(&there, &format!("{BUCKET}/k")).await == (200, pattern(70_000)));
}
