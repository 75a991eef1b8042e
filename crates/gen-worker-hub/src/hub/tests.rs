//! The hub against a file server that misbehaves.

use std::fs;

use gen_worker_core::{Algorithm, ByteLimit, ByteSize, Digest, FailureKind, testing::RecordedEvents};

mod disk;
mod sources;
mod transfer;

use super::*;
use crate::{
    HubApi,
    testing::{Answer, FileServer, client, config, hub},
};

struct Bench {
    cache: tempfile::TempDir,
    server: FileServer,
    hub: Hub,
    events: Arc<RecordedEvents>,
}

impl Bench {
    async fn new(answers: &[Answer]) -> Self {
        Self::on(FileServer::start(&content(), answers).await)
    }

    fn on(server: FileServer) -> Self {
        let cache = tempfile::tempdir().unwrap();
        Self { hub: hub(cache.path(), &server), events: Arc::default(), cache, server }
    }

    async fn ensure(&self, text: &str) -> Result<LocalModel, JobFailure> {
        self.hub.ensure(&model(text), self.events.clone()).await
    }

    fn states(&self) -> Vec<String> {
        let payloads = self.events.payloads("model.download");
        payloads.iter().map(|payload| payload["state"].as_str().unwrap().to_owned()).collect()
    }

    /// The names of what is published.
    fn published(&self) -> usize {
        let models = fs::read_dir(self.cache.path().join("models")).unwrap();
        models.filter(|entry| entry.as_ref().unwrap().path().extension().is_none()).count()
    }
}

fn model(text: &str) -> ModelRef {
    ModelRef::parse(text).unwrap()
}

/// Enough for several pieces on the wire.
fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n % 251) as u8).collect()
}

fn read(local: &LocalModel, name: &str) -> Vec<u8> {
    fs::read(&local.files[name]).unwrap()
}

#[tokio::test]
async fn a_model_is_fetched_once_and_found_again() {
    let bench = Bench::new(&[]).await;
    let local = bench.ensure("org/unet.onnx:v1").await.unwrap();
    assert_eq!(read(&local, "unet.onnx"), content());
    assert_eq!(local.size_bytes, 3_000_000);
    assert_eq!(bench.server.paths(), ["/org/unet.onnx:v1"]);
    assert_eq!(bench.server.seen("authorization"), ["Bearer hub-token"]);

    bench.ensure("cozy:org/unet.onnx:v1").await.unwrap();
    let next = hub(bench.cache.path(), &bench.server);
    assert_eq!(next.on_disk(), ["org/unet.onnx:v1"]);
    next.ensure(&model("org/unet.onnx:v1"), bench.events.clone()).await.unwrap();
    assert_eq!(bench.server.paths().len(), 1);
    assert_eq!(
        bench.states().split_off(bench.states().len() - 3),
        ["completed", "already_present", "already_present"]
    );
    assert_eq!(bench.hub.on_disk(), ["cozy:org/unet.onnx:v1", "org/unet.onnx:v1"]);
}

#[tokio::test]
async fn a_download_that_breaks_off_is_resumed() {
    let bench = Bench::new(&[Answer::Cut(1_000_000), Answer::Cut(500_000)]).await;
    let local = bench.ensure("org/m").await.unwrap();
    assert_eq!(read(&local, "m"), content());
    let ranges = ["bytes=0-16777215", "bytes=1000000-2999999", "bytes=1500000-2999999"];
    assert_eq!(bench.server.seen("range"), ranges);
    assert_eq!(bench.server.seen("if-range"), ["", "\"v1\"", "\"v1\""]);
}

#[tokio::test]
async fn the_next_process_resumes_too() {
    let cut = [Answer::Cut(1_000_000), Answer::Status(503), Answer::Status(503)];
    let bench = Bench::new(&cut).await;
    assert_eq!(bench.ensure("org/m").await.unwrap_err().kind, FailureKind::Retryable);
    let next = hub(bench.cache.path(), &bench.server);
    let local = next.ensure(&model("org/m"), bench.events.clone()).await.unwrap();
    assert_eq!(read(&local, "m"), content());
    assert_eq!(bench.server.seen("range").last().unwrap(), "bytes=1000000-2999999");
}

#[tokio::test]
async fn a_server_that_ignores_the_range_starts_over() {
    let bench = Bench::new(&[Answer::Cut(1_000_000), Answer::Whole]).await;
    let local = bench.ensure("org/m").await.unwrap();
    assert_eq!(read(&local, "m"), content());
}

#[tokio::test]
async fn a_wrong_range_is_not_appended() {
    let bench = Bench::new(&[Answer::Cut(1_000_000), Answer::WrongRange]).await;
    let local = bench.ensure("org/m").await.unwrap();
    assert_eq!(read(&local, "m"), content());
    assert_eq!(bench.server.seen("range"), ["bytes=0-16777215", "bytes=1000000-2999999", "bytes=0-16777215"]);
}

#[tokio::test]
async fn without_a_validator_the_next_process_resumes_nothing() {
    let headers = [("etag", "W/\"weak\"")];
    let cut = [Answer::Cut(1_000_000), Answer::Status(503), Answer::Status(503)];
    let bench = Bench::on(FileServer::with_headers(&content(), &cut, &headers, 100).await);
    bench.ensure("org/m").await.unwrap_err();
    let next = hub(bench.cache.path(), &bench.server);
    let local = next.ensure(&model("org/m"), bench.events.clone()).await.unwrap();
    assert_eq!(read(&local, "m"), content());
    assert_eq!(bench.server.seen("range").last().unwrap(), "bytes=0-16777215");
}

#[tokio::test]
async fn a_model_directory_is_absent_or_verified() {
    let bench = Bench::new(&[Answer::Corrupt, Answer::Corrupt]).await;
    let failure = bench.ensure("org/m").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Retryable);
    assert_eq!((bench.server.paths().len(), bench.published()), (2, 0));
    assert!(bench.hub.on_disk().is_empty());

    let local = bench.ensure("org/m").await.unwrap();
    assert_eq!((read(&local, "m"), bench.published()), (content(), 1));
}

#[tokio::test]
async fn a_pinned_digest_holds_whatever_the_server_says() {
    let server = FileServer::with_headers(&content(), &[Answer::Cut(1_000_000)], &[], 100).await;
    let bench = Bench::on(server);
    for algorithm in [Algorithm::Blake3, Algorithm::Sha256] {
        let right = Digest::of(algorithm, &content());
        bench.ensure(&format!("org/m@{right}")).await.unwrap();
        let wrong = Digest::of(algorithm, b"other");
        let failure = bench.ensure(&format!("org/m@{wrong}")).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Retryable);
    }
    assert_eq!(bench.published(), 2);
    // The digest also vouches for what was resumed.
    assert_eq!(bench.server.seen("range")[1], "bytes=1000000-2999999");
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, kind, message) in [
        (404, FailureKind::Validation, "model cozy:org/m:latest not found"),
        (401, FailureKind::Auth, "model cozy:org/m:latest read unauthorized (401)"),
        (403, FailureKind::Auth, "model cozy:org/m:latest read unauthorized (403)"),
    ] {
        let bench = Bench::new(&[Answer::Status(status)]).await;
        let failure = bench.ensure("org/m").await.unwrap_err();
        assert_eq!((failure.kind, failure.safe_message.as_str()), (kind, message));
        assert_eq!((bench.server.paths().len(), bench.states()), (1, vec!["failed".to_owned()]));
    }
}

#[tokio::test]
async fn a_hub_ref_needs_a_hub() {
    let bench = Bench::new(&[]).await;
    let config = HubConfig { hub_url: None, ..config(bench.cache.path(), &bench.server) };
    let hub = Hub::new(config, client(&[]));
    let failure = hub.ensure(&model("org/m"), bench.events.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Validation);
    assert_eq!(failure.safe_message, "model refs need COZY_HUB_URL");
}

#[tokio::test]
async fn two_who_ask_share_one_download() {
    let headers = [("etag", "\"v1\"")];
    let bench = Bench::on(FileServer::with_headers(&content(), &[], &headers, 0).await);
    let one = bench.ensure("org/m");
    let two = bench.ensure("cozy:org/m");
    let gone = bench.ensure("org/m");
    let wait = async {
        // The one who asked first goes before the server answers.
        tokio::select! {
            biased;
            _ = gone => panic!("the server has not answered"),
            () = until(|| !bench.server.paths().is_empty()) => {}
        }
        let both = async { tokio::join!(one, two) };
        let open = async { bench.server.open() };
        tokio::join!(both, open).0
    };
    let (one, two) = wait.await;
    assert_eq!(one.unwrap().model.as_str(), "org/m");
    assert_eq!(two.unwrap().model.as_str(), "cozy:org/m");
    assert_eq!(bench.server.paths().len(), 1);
    let terminal = |state: &String| state != "downloading";
    assert_eq!(bench.states().into_iter().filter(terminal).collect::<Vec<_>>(), ["completed", "completed"]);
}

async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), wait).await.expect("it comes to hold");
}

#[tokio::test]
async fn a_url_gets_no_token_is_judged_and_named_without_its_signature() {
    let bench = Bench::new(&[]).await;
    let url = bench.server.url("/a/cat.onnx?sig=hunter2");
    let local = bench.ensure(&url).await.unwrap();
    assert_eq!(read(&local, "cat.onnx"), content());
    assert_eq!(bench.server.seen("authorization"), [""]);
    let name = bench.server.url("/a/cat.onnx");
    let events = bench.events.payloads("model.download");
    assert!(events.iter().all(|event| event["model_id"] == name), "{events:?}");
    assert_eq!(
        [bench.hub.on_disk(), hub(bench.cache.path(), &bench.server).on_disk()],
        [[name.clone()], [name]]
    );

    let strict = Hub::new(config(&bench.cache.path().join("other"), &bench.server), client(&[]));
    let failure = strict.ensure(&model(&url), bench.events.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Validation);
    assert!(!failure.chain().contains("hunter2"), "{}", failure.chain());
}

#[tokio::test]
async fn a_local_file_is_where_it_was() {
    let bench = Bench::new(&[]).await;
    let path = bench.cache.path().join("mine.onnx");
    fs::write(&path, b"abc").unwrap();
    let local = bench.ensure(&format!("file:{}", path.display())).await.unwrap();
    assert_eq!(local.files["mine.onnx"], path);
    assert_eq!(bench.states(), ["already_present"]);
    let failure = bench.ensure("file:/no/such/model").await.unwrap_err();
    assert_eq!(failure.safe_message, "the model file is not on this worker");
}

#[tokio::test]
async fn bars_do_not_get_in_the_way() {
    let bench = Bench::new(&[]).await;
    let config = HubConfig { show_bars: true, ..config(bench.cache.path(), &bench.server) };
    let hub = Hub::new(config, client(&[]));
    hub.ensure(&model("org/m"), bench.events.clone()).await.unwrap();
}
