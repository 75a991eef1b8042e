//! What is secret reaches those it is meant for, and no log and nobody else.

use std::sync::{Arc, Mutex, PoisonError};

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeFileApi, FakeHub, FakeScheduler, Fault, RecordedRequest};
use gen_worker_tests::{WorkerProcess, WorkerSettings, pack};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::Status;

use super::CONFORMANCE;

const WORKER_TOKEN: &str = "secret-of-the-worker";
const HUB_TOKEN: &str = "secret-of-the-hub";
const FILE_TOKEN: &str = "secret-of-the-file-api";
const RUN_TOKEN: &str = "secret-of-the-run";
const STALE_TOKEN: &str = "secret-of-another-run";
const SIGNATURE: &str = "secret-signature";
const SIGNED_HEADER: &str = "secret-header";
const REDIRECTED: &str = "secret-of-the-redirect";
const PASSWORD: &str = "secret-password";
/// Signs, and is told to nobody.
const S3_SECRET: &str = "secret-of-s3";

const FIXTURE: &[u8] =
    include_bytes!("../../../crates/gen-worker-models-ort/tests/fixtures/double_plus_one.onnx");

/// Sends whoever asks it to the same path elsewhere, with a signature, and keeps what it was asked.
struct Redirector {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Redirector {
    async fn to(elsewhere: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let kept = heads.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let head = answer(connection, &elsewhere).await.expect("the worker reads its answer");
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(head);
            }
        });
        Self { url, heads, _server: server }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn answer(mut connection: TcpStream, elsewhere: &str) -> std::io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let location = format!("{elsewhere}{path}?X-Amz-Signature={REDIRECTED}");
    let answer = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(answer.as_bytes()).await?;
    Ok(head)
}

/// A function, its payload, and whether it succeeds.
type Call = (&'static str, Value, bool);

/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

/// URLs that lead nowhere, to a private network, and to a site with a password.
fn bad_urls() -> [String; 3] {
    [NOBODY, "http://10.0.0.1", &format!("https://u:{PASSWORD}@files.example")]
        .map(|site| format!("{site}/x?sig={SIGNATURE}"))
}

/// Everybody that a worker talks to.
struct Peers {
    scheduler: FakeScheduler,
    /// The worker's own file API.
    files: FakeFileApi,
    /// The file API of runs.
    run_files: FakeFileApi,
    hub: Redirector,
    redirecting_files: Redirector,
    /// Where the two lead.
    elsewhere: FakeHub,
    /// A public site, by URLs in payloads.
    site: FakeHub,
}

impl Peers {
    async fn start() -> Self {
        let elsewhere = FakeHub::start().await;
        let peers = Self {
            scheduler: FakeScheduler::start().await,
            files: FakeFileApi::start(FILE_TOKEN).await,
            run_files: FakeFileApi::start(RUN_TOKEN).await,
            hub: Redirector::to(elsewhere.url()).await,
            redirecting_files: Redirector::to(elsewhere.url()).await,
            elsewhere,
            site: FakeHub::start().await,
        };
        peers.run_files.put("cat.png", "cat", "image/png");
        peers.elsewhere.put("/acme/m.onnx", FIXTURE);
        peers.elsewhere.put("/api/v1/file/cat.png", "cat");
        peers.elsewhere.fault_always("/acme/refused.onnx", Fault::Status(401));
        peers.site.put("/cat.png", "cat");
        peers.site.put("/m.onnx", FIXTURE);
        peers.site.fault_always("/away", Fault::Status(503));
        peers.site.fault_always("/refused", Fault::Status(403));
        peers.run_files.fault_always("/put/away", Fault::Status(500));
        peers.run_files.fault_always("/put/refused", Fault::Status(403));
        peers
    }

    fn worker(&self) -> WorkerProcess {
        WorkerSettings::new(CONFORMANCE, &self.scheduler)
            .set("AUTH_TOKEN", WORKER_TOKEN)
            .set("COZY_HUB_URL", &self.hub.url)
            .set("COZY_HUB_TOKEN", HUB_TOKEN)
            .set("FILE_API_BASE_URL", self.files.url())
            .set("FILE_API_TOKEN", FILE_TOKEN)
            .set("WORKER_URL_ALLOW", "127.0.0.1")
            .set("WORKER_DOWNLOAD_RETRIES", "1")
            .set("RUST_LOG", "trace")
            .start()
    }

    /// Runs with secrets in or about them, and whether they succeed.
    fn runs(&self) -> Vec<(v1::TaskExecutionRequest, bool)> {
        let placed = |base: String, token: &'static str| {
            move |(function, payload, succeeds): Call| {
                let request = v1::TaskExecutionRequest {
                    function_name: function.into(),
                    input_payload: pack(&payload).into(),
                    file_base_url: base.clone(),
                    file_token: token.into(),
                    ..Default::default()
                };
                (request, succeeds)
            }
        };
        let cat = |succeeds| ("digest", json!({"file": {"ref": "cat.png"}}), succeeds);
        let save = |succeeds| ("save", json!({"name": "x", "size": 9}), succeeds);
        let at_run = [cat(true), save(true)].into_iter().chain(self.inputs()).chain(self.models());
        at_run
            .chain(self.uploads())
            .map(placed(self.run_files.url(), RUN_TOKEN))
            .chain([cat(false), save(false)].map(placed(self.run_files.url(), STALE_TOKEN)))
            .chain([cat(false), save(false)].map(placed(NOBODY.to_owned(), RUN_TOKEN)))
            .chain([cat(true), save(false)].map(placed(self.redirecting_files.url.clone(), RUN_TOKEN)))
            .chain([cat(false), save(true)].map(placed(String::new(), "")))
            .collect()
    }

    fn inputs(&self) -> Vec<Call> {
        let refused = bad_urls().into_iter().chain(["/away", "/refused", "/unknown"].map(|p| self.signed(p)));
        let file = |succeeds| move |url| ("digest", json!({"file": {"ref": url}}), succeeds);
        let no_asset = ("digest", json!({"file": self.signed("/cat.png")}), false);
        refused.map(file(false)).chain([self.signed("/cat.png")].map(file(true))).chain([no_asset]).collect()
    }

    fn models(&self) -> Vec<Call> {
        let [away, no_model] = ["/away", "/cat.png"].map(|path| self.signed(path));
        let model = |succeeds| move |m: String| ("infer", json!({"model_ref": m, "values": [1.0]}), succeeds);
        let at_hub = ["acme/refused.onnx", "acme/unknown.onnx"].map(str::to_owned);
        let refused = at_hub.into_iter().chain(bad_urls()).chain([away, no_model]);
        let found = ["acme/m.onnx".to_owned(), self.signed("/m.onnx")];
        refused.map(model(false)).chain(found.map(model(true))).collect()
    }

    fn uploads(&self) -> Vec<Call> {
        let to = |key: &str| {
            let put_url = format!("{}?X-Amz-Signature={SIGNATURE}", self.run_files.put_url(key));
            json!({"put_url": put_url, "headers": {"x-amz-security-token": SIGNED_HEADER}})
        };
        let [nowhere, private, with_user] = bad_urls();
        let refused = [
            to("away"),
            to("refused"),
            json!({"put_url": nowhere}),
            json!({"put_url": private}),
            json!({"put_url": with_user}),
            json!({"put_url": format!("no url {SIGNATURE}")}),
            json!({"put_url": {"url": SIGNATURE}}),
            json!({"put_url": nowhere, "headers": {"Host": SIGNED_HEADER}}),
            json!({"put_url": nowhere, "headers": {"a b": SIGNED_HEADER}}),
            json!({"put_url": nowhere, "headers": SIGNED_HEADER}),
            json!({"s3": {"secret_access_key": SIGNED_HEADER}}),
            json!({"s3": self.s3()}),
            json!({"put_url": to("refused")["put_url"], "refresh_url": self.signed("/unknown")}),
            json!(SIGNATURE),
        ];
        let raw = |succeeds| move |o| ("raw", json!({"size": 9, "output_upload": o}), succeeds);
        let echo = ("echo", json!({"text": "x", "output_upload": to("echo")}), true);
        refused.map(raw(false)).into_iter().chain([to("raw")].map(raw(true))).chain([echo]).collect()
    }

    /// A store that takes nothing.
    fn s3(&self) -> Value {
        json!({
            "bucket": "b", "key": "k", "region": "r", "endpoint": self.run_files.url(), "access_key_id": "id",
            "secret_access_key": S3_SECRET, "session_token": SIGNED_HEADER,
        })
    }

    /// A URL of the site, as signed for a caller.
    fn signed(&self, path: &str) -> String {
        format!("{}{path}?X-Amz-Signature={SIGNATURE}", self.site.url())
    }

    /// Who was told what, and which secrets that may hold.
    fn told(&self) -> Vec<(&'static str, String, &'static [&'static str])> {
        vec![
            ("the file API", shown(self.files.requests()), &[FILE_TOKEN]),
            (
                "the runs' file API",
                shown(self.run_files.requests()),
                &[RUN_TOKEN, STALE_TOKEN, SIGNATURE, SIGNED_HEADER],
            ),
            ("the hub", self.hub.heads().concat(), &[HUB_TOKEN]),
            ("the file API that redirects", self.redirecting_files.heads().concat(), &[RUN_TOKEN]),
            ("where redirects lead", shown(self.elsewhere.requests()), &[REDIRECTED]),
            ("the site", shown(self.site.requests()), &[SIGNATURE]),
        ]
    }
}

/// The secrets in a text.
fn secrets_in(text: &str) -> Vec<&'static str> {
    let all = [
        WORKER_TOKEN,
        HUB_TOKEN,
        FILE_TOKEN,
        RUN_TOKEN,
        STALE_TOKEN,
        SIGNATURE,
        SIGNED_HEADER,
        REDIRECTED,
        PASSWORD,
        S3_SECRET,
    ];
    all.into_iter().filter(|secret| text.contains(secret)).collect()
}

/// Every header as it was sent, also what marks itself as sensitive.
fn shown(requests: Vec<RecordedRequest>) -> String {
    let request = |request: &RecordedRequest| {
        let headers: String = request
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        format!("{} {}\n{headers}", request.method, request.path)
    };
    requests.iter().map(request).collect()
}

/// The lines of a log in which a secret stands.
fn telling(log: &str) -> String {
    log.lines().filter(|line| !secrets_in(line).is_empty()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn no_secret_is_logged_or_sent_elsewhere() {
    let peers = Peers::start().await;
    peers.scheduler.refuse_next(Status::unauthenticated("who is there?"));
    let worker = peers.worker();
    let mut stream = peers.scheduler.accept().await;
    assert_eq!(stream.authorization(), Some("Bearer secret-of-the-worker"));
    for (at, (request, succeeds)) in peers.runs().into_iter().enumerate() {
        let request = v1::TaskExecutionRequest { run_id: format!("r{at}"), ..request };
        stream.send(Msg::RunRequest(request.clone())).await;
        let result = stream.next_result().await;
        assert_eq!(result.success, succeeds, "{request:?}: {result:?}");
    }
    // Every registration says which models there are.
    stream.drop_connection();
    let mut again = peers.scheduler.accept().await;
    again.next_registration().await;
    let messages = stream.seen().iter().chain(again.seen()).map(|message| format!("{message:?}\n"));
    let messages: String = messages.collect();
    assert!(telling(&messages).is_empty(), "{}", telling(&messages));
    for (who, text, allowed) in peers.told() {
        assert_eq!(secrets_in(&text), allowed, "{who} was told\n{text}");
    }
    let log = worker.log();
    for speaks in ["h2::", "hyper_util::", "reqwest::", "tonic::", "gen_worker_runtime::", "gen_worker_hub::"]
    {
        assert!(log.contains(&format!(r#""target":"{speaks}"#)), "{speaks} logs");
    }
    assert!(telling(&log).is_empty(), "{}", telling(&log));
}
