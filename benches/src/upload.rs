//! Outputs on their way out, against what the network would take from anybody.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use gen_worker_core::{
    OutputBody,
    config::{ConfigErrors, Env},
};
use gen_worker_net::{HttpClient, HttpResponse, Method, NetConfig, Trust};
use gen_worker_proto::scheduler::{TaskExecutionRequest, worker_scheduler_message::Msg};
use gen_worker_testkit::SeaweedFs;
use jiff::Timestamp;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle, signing};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpStream,
    process::Command,
    task::JoinSet,
};
use url::Url;

use crate::{
    ROUNDS,
    link::Scheduler,
    measure::{median, mib},
    peer::{Peer, Program},
    report::Report,
    sink::{Sink, put},
};

const LARGE_BYTES: u64 = 1 << 30;
/// As the worker cuts S3 objects of this size.
const PART_BYTES: u64 = 16 << 20;
const PARTS_AT_ONCE: usize = 4;
/// What is sent to a store that keeps it on disk, each time anew.
const STORED_BYTES: u64 = 256 << 20;
/// Its disk takes the same bytes once in half a second and once in two: fewer rounds say more of it than of the worker.
const STORED_ROUNDS: usize = 8;
/// Longer than the bench takes.
const SIGNED_FOR: Duration = Duration::from_secs(3600);
const SMALL_BYTES: u64 = 100 << 10;
const SMALL: u64 = 200;
/// As many as the worker sends at once.
const SMALL_AT_ONCE: u64 = 8;

/// A way by which large outputs leave.
#[derive(Clone, Copy)]
enum Way {
    Presigned,
    S3,
}

/// Everything, within three minutes.
pub(crate) async fn all(worker: &Path, seaweed: &Path) -> Report {
    let (mut report, mut scheduler) = (Report::default(), Scheduler::start().await);
    let (sink, folder) = (Sink::start().await, tempfile::tempdir().expect("a temporary folder"));
    let file = large_file(&folder, LARGE_BYTES).await;
    for way in [Way::Presigned, Way::S3] {
        large(&mut report, &mut scheduler, worker, &Store::sink(&sink), &file, way).await;
    }
    small(&mut report, &mut scheduler, worker, &Store::sink(&sink)).await;
    let file = large_file(&folder, STORED_BYTES).await;
    for way in [Way::Presigned, Way::S3] {
        // A store has room for one of them.
        let there = SeaweedFs::start(seaweed).await;
        large(&mut report, &mut scheduler, worker, &Store::seaweed(&there), &file, way).await;
    }
    let there = SeaweedFs::start(seaweed).await;
    small(&mut report, &mut scheduler, worker, &Store::seaweed(&there)).await;
    report
}

async fn large_file(folder: &TempDir, bytes: u64) -> PathBuf {
    let path = folder.path().join("large");
    let mebibyte: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let content = mebibyte.repeat((bytes >> 20) as usize);
    tokio::fs::write(&path, content).await.expect("there is room for it");
    path
}

/// Where large outputs go, and where their yardsticks go: the same server by the same bytes.
struct Store {
    name: &'static str,
    bytes: u64,
    rounds: usize,
    presigned: String,
    small: String,
    bucket: Bucket,
    credentials: Credentials,
    s3: Value,
}

impl Store {
    fn sink(sink: &Sink) -> Self {
        Self::at(&format!("http://{}", sink.addr), "the sink", (LARGE_BYTES, ROUNDS), ("id", "key"))
    }

    fn seaweed(store: &SeaweedFs) -> Self {
        let key = (SeaweedFs::ACCESS_KEY_ID, SeaweedFs::SECRET_ACCESS_KEY);
        Self::at(&store.url(), "SeaweedFS", (STORED_BYTES, STORED_ROUNDS), key)
    }

    fn at(url: &str, name: &'static str, (bytes, rounds): (u64, usize), (id, secret): (&str, &str)) -> Self {
        let endpoint = url.parse().expect("it is a URL");
        let bucket = Bucket::new(endpoint, UrlStyle::Path, "bench", "r").expect("a bucket has such a name");
        let credentials = Credentials::new(id, secret);
        let sign = |key: &str| bucket.put_object(Some(&credentials), key).sign(SIGNED_FOR).into();
        let (presigned, small) = (sign("large"), sign("small"));
        Self { name, bytes, rounds, presigned, small, bucket, credentials, s3: s3(url, id, secret) }
    }

    /// Begins an upload; says where its parts go.
    async fn parts(&self) -> Vec<String> {
        let (key, by) = ("raw", &self.credentials);
        let begin = signing::sign(
            &Timestamp::now(),
            rusty_s3::Method::Post,
            self.bucket.object_url(key),
            by.key(),
            by.secret(),
            None,
            self.bucket.region(),
            SIGNED_FOR.as_secs(),
            [("uploads", "1")].into_iter(),
            std::iter::empty(),
        );
        let begun = client().request(Method::POST, begin, Trust::Operator).send().await;
        let begun = begun.and_then(HttpResponse::into_success).expect("the store begins an upload");
        let begun = begun.bytes(1 << 16).await.expect("it says which");
        let text = String::from_utf8_lossy(&begun);
        let id = text.split("<UploadId>").nth(1).and_then(|rest| rest.split('<').next());
        let id = id.expect("an upload has a name");
        let part = |number| self.bucket.upload_part(Some(by), key, number, id).sign(SIGNED_FOR).into();
        (1..=(self.bytes / PART_BYTES) as u16).map(part).collect()
    }
}

fn s3(endpoint: &str, id: &str, secret: &str) -> Value {
    json!({"s3": {
        "bucket": "bench", "key": "parts", "region": "r", "endpoint": endpoint,
        "access_key_id": id, "secret_access_key": secret,
    }})
}

/// Measured by turns with its yardstick, in a worker of its own, whose memory is that of this alone.
async fn large(
    report: &mut Report,
    scheduler: &mut Scheduler,
    worker: &Path,
    store: &Store,
    file: &Path,
    way: Way,
) {
    let (name, mebibytes) = (store.name, store.bytes >> 20);
    let (how, output_upload) = match way {
        Way::Presigned => ("presigned PUT", json!({"put_url": store.presigned})),
        Way::S3 => ("S3", store.s3.clone()),
    };
    let mut peer = Peer::start(scheduler, Program::Worker(worker)).await;
    let payload = json!({"path": file, "output_upload": output_upload});
    let (mut ours, mut raw, before) = (Vec::new(), Vec::new(), peer.resident().current);
    for round in 0..store.rounds {
        let parts = match way {
            Way::Presigned => Vec::new(),
            Way::S3 => store.parts().await,
        };
        // Who goes second does so while the disk still writes what the first sent: each is second as often.
        for is_ours in [round % 2 == 1, round % 2 == 0] {
            let since = Instant::now();
            match way {
                _ if is_ours => run(&mut peer, "file", &payload).await,
                Way::S3 => parallel(file, &parts).await,
                Way::Presigned => curl(file, &store.presigned).await,
            }
            let rates = if is_ours { &mut ours } else { &mut raw };
            rates.push(mebibytes as f64 / since.elapsed().as_secs_f64());
        }
    }
    let growth = mib(peer.resident().peak.saturating_sub(before));
    let line = report.add(format!("{mebibytes} MiB to {name}, {how}"), "MiB/s", median(ours));
    line.beside(median(raw)).goal("≥ 0.9");
    report.add(format!("resident growth, {name}, {how}"), "MiB", growth).goal("< 48 MiB");
}

async fn curl(file: &Path, url: &str) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "-T"]).arg(file).arg(url);
    let status = curl.stdout(std::process::Stdio::null()).status().await.expect("curl is installed");
    assert!(status.success(), "curl: {status}");
}

/// The same parts over as many connections as the worker has parts in flight.
async fn parallel(file: &Path, parts: &[String]) {
    let mut lanes = JoinSet::new();
    for lane in 0..PARTS_AT_ONCE {
        let (file, parts) = (file.to_owned(), parts.to_vec());
        lanes.spawn(async move {
            let (addr, _) = host_and_path(&parts[0]);
            let mut connection = TcpStream::connect(addr).await.expect("the store listens");
            for (part, url) in parts.iter().enumerate().skip(lane).step_by(PARTS_AT_ONCE) {
                let mut file = File::open(&file).await.expect("the file is there");
                file.set_max_buf_size(256 << 10);
                let start = std::io::SeekFrom::Start(part as u64 * PART_BYTES);
                file.seek(start).await.expect("a file can be sought");
                let sent = put(&mut connection, host_and_path(url), PART_BYTES, file.take(PART_BYTES)).await;
                sent.expect("the store takes all");
            }
        });
    }
    lanes.join_all().await;
}

fn host_and_path(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("stores on loopback speak plain HTTP");
    rest.split_at(rest.find('/').expect("each address has a path"))
}

async fn small(report: &mut Report, scheduler: &mut Scheduler, worker: &Path, store: &Store) {
    let mut peer = Peer::start(scheduler, Program::Worker(worker)).await;
    let payload = json!({"size": SMALL_BYTES, "output_upload": {"put_url": store.small}});
    let client = client();
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    // The first round warms the connections of both.
    for round in 0..=ROUNDS {
        let since = Instant::now();
        over(&client, &store.small).await;
        let took = since.elapsed();
        let since = Instant::now();
        runs(&mut peer, "bytes", &payload, SMALL).await;
        if round > 0 {
            raw.push(SMALL as f64 / took.as_secs_f64());
            ours.push(SMALL as f64 / since.elapsed().as_secs_f64());
        }
    }
    let line = report.add(format!("200 outputs of 100 KiB to {}", store.name), "/s", median(ours));
    line.beside(median(raw)).goal("≥ 0.8 of a warm pool");
}

/// The small outputs over one pool of connections, and nothing else.
async fn over(client: &HttpClient, url: &str) {
    let url: Url = url.parse().expect("it was written by a URL");
    let body = Bytes::from(vec![7; SMALL_BYTES as usize]);
    let mut lanes = JoinSet::new();
    for _ in 0..SMALL_AT_ONCE {
        let (client, url, body) = (client.clone(), url.clone(), body.clone());
        lanes.spawn(async move {
            for _ in 0..SMALL / SMALL_AT_ONCE {
                let request = client.request(Method::PUT, url.clone(), Trust::Operator);
                let answer = request.body(OutputBody::Bytes(body.clone())).send().await;
                answer.and_then(HttpResponse::into_success).expect("the store takes all");
            }
        });
    }
    lanes.join_all().await;
}

fn client() -> HttpClient {
    let config = NetConfig::from_env(&Env::default(), &mut ConfigErrors::default());
    HttpClient::new(config).expect("TLS can be set up")
}

async fn run(peer: &mut Peer, function: &str, payload: &Value) {
    runs(peer, function, payload, 1).await;
}

/// Sends all at once and waits for all results.
async fn runs(peer: &mut Peer, function: &str, payload: &Value, count: u64) {
    for number in 0..count {
        let request = TaskExecutionRequest {
            run_id: number.to_string(),
            function_name: function.to_owned(),
            input_payload: rmp_serde::to_vec_named(payload).expect("it has a MessagePack form").into(),
            ..Default::default()
        };
        peer.link.say(Msg::RunRequest(request)).await;
    }
    let mut left = count;
    while left > 0 {
        if let Msg::RunResult(result) = peer.link.hear().await {
            assert!(result.success, "a run failed: {}", result.error_message);
            left -= 1;
        }
    }
}
