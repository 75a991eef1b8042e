//! Models: fetched from the hub, kept on disk, held in memory, allowed or not (contract §6).

use std::{fs, path::Path};

use gen_worker::{Call, Function, ModelArtifacts, ModelBinding, Worker, WorkerError};
use gen_worker_core::{Algorithm, Digest};
use gen_worker_proto::scheduler::{
    self as v1, TaskExecutionResult, WorkerResources, worker_scheduler_message::Msg,
};
use gen_worker_testkit::{FakeHub, FakeScheduler, Fault, WorkerStream};
use gen_worker_tests::{Embedded, WorkerProcess, WorkerSettings, unpack};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{CONFORMANCE, worker};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../crates/gen-worker-models-ort/tests/fixtures/double_plus_one.onnx"
);
pub(super) const MODEL: &str = "acme/double.onnx";
const PATH: &str = "/acme/double.onnx";

pub(super) fn onnx() -> Vec<u8> {
    fs::read(FIXTURE).expect("the fixture is there")
}

/// The model as a file of this machine.
fn file_ref() -> String {
    format!("file:{}", fs::canonicalize(FIXTURE).expect("the fixture is there").display())
}

/// A hub that has the one model, and a worker that takes its models there.
pub(super) async fn hub_and_worker(
    settings: &[(&str, &str)],
) -> (FakeHub, FakeScheduler, WorkerProcess, WorkerStream) {
    let hub = FakeHub::start().await;
    hub.put(PATH, onnx());
    let url = hub.url();
    let own = [("COZY_HUB_URL", url.as_str()), ("COZY_HUB_TOKEN", "hub-token"), ("COZY_HUB_API", "direct")];
    let (scheduler, process, stream) = worker(&[&own, settings].concat()).await;
    (hub, scheduler, process, stream)
}

pub(super) async fn infer(stream: &mut WorkerStream, model_ref: &str) -> TaskExecutionResult {
    stream.run("r", "infer", json!({"model_ref": model_ref, "values": [1.0, -3.5]})).await;
    let result = stream.next_result().await;
    // Else it would come again on the next stream.
    stream.ack(&result).await;
    result
}

fn assert_doubled(result: &TaskExecutionResult) {
    assert!(result.success, "{result:?}");
    assert_eq!(unpack::<Value>(&result.output_payload)["values"], json!([3.0, -6.0]));
}

/// `error_type` and `safe_message`.
fn refusal(result: &TaskExecutionResult) -> (&str, &str) {
    assert!(!result.success && result.output_payload.is_empty(), "{result:?}");
    (&result.error_type, &result.safe_message)
}

/// The states that downloads of all runs `r` went through so far.
fn states(stream: &WorkerStream) -> Vec<String> {
    let events = stream.events("r").into_iter().filter(|event| event.event_type == "model.download");
    events
        .map(|event| {
            let payload: Value = serde_json::from_slice(&event.payload_json).expect("events are JSON");
            payload["state"].as_str().expect("it has a state").to_owned()
        })
        .collect()
}

/// What the worker says of itself when it connects anew.
async fn registered_anew(scheduler: &FakeScheduler, stream: &mut WorkerStream) -> WorkerResources {
    // Commands are taken in order: with this answer here, every acknowledgement was read.
    unload(stream, "acme/never-loaded").await;
    stream.drop_connection();
    *stream = scheduler.accept().await;
    let registration = stream.next_registration().await;
    registration.resources.expect("it names its resources")
}

/// The directories that count as models.
fn published(cache: &Path) -> usize {
    let entries = fs::read_dir(cache.join("models")).expect("there was a download");
    entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().extension().is_none())).count()
}

#[tokio::test]
async fn a_model_is_fetched_once_with_the_hubs_credential() {
    let (hub, _scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    assert_doubled(&infer(&mut stream, MODEL).await);
    let first = states(&stream);
    assert_eq!(first.last().map(String::as_str), Some("completed"));
    assert!(first[..first.len() - 1].iter().all(|state| state == "downloading"), "{first:?}");
    assert_doubled(&infer(&mut stream, &format!("cozy:{MODEL}:latest")).await);
    assert_eq!(states(&stream)[first.len()..], ["already_present"]);
    let [request] = &hub.requests()[..] else { panic!("one request: {:?}", hub.requests()) };
    assert_eq!((request.path.as_str(), request.header("authorization")), (PATH, Some("Bearer hub-token")));
}

#[tokio::test]
async fn runs_that_want_one_model_share_its_download() {
    let (hub, _scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    for n in 0..8 {
        stream.run(&format!("r{n}"), "infer", json!({"model_ref": MODEL, "values": [1.0, -3.5]})).await;
    }
    for _ in 0..8 {
        assert_doubled(&stream.next_result().await);
    }
    assert_eq!(hub.requests().len(), 1);
}

#[tokio::test]
async fn a_run_canceled_while_it_waits_for_a_download_leaves_it_to_others() {
    let (hub, _scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    let held = hub.hold(PATH);
    stream.hello(&["run-accepted"]).await;
    let accepted = |message| matches!(message, Msg::RunAccepted(_)).then_some(());
    stream.run("first", "infer", json!({"model_ref": MODEL, "values": [1.0, -3.5]})).await;
    held.asked().await;
    stream.run("second", "infer", json!({"model_ref": MODEL, "values": [1.0, -3.5]})).await;
    for _ in 0..2 {
        stream.wait_for("the runs to be accepted", accepted).await;
    }
    let interrupt = v1::InterruptTaskCommand { run_id: "first".into(), attempt: 0 };
    stream.send(Msg::InterruptRunCmd(interrupt)).await;
    let canceled = stream.next_result().await;
    assert_eq!((canceled.run_id.as_str(), canceled.error_type.as_str()), ("first", "canceled"));
    drop(held);
    assert_doubled(&stream.next_result().await);
    assert_eq!(hub.requests().len(), 1);
}

#[tokio::test]
async fn a_download_that_breaks_off_is_resumed() {
    let (hub, _scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    hub.fault_once(PATH, [Fault::Truncate(50)]);
    assert_doubled(&infer(&mut stream, MODEL).await);
    let ranges: Vec<_> = hub.requests().iter().map(|r| r.header("range").map(str::to_owned)).collect();
    let rest = format!("bytes=50-{}", onnx().len() - 1);
    assert_eq!(ranges, [Some("bytes=0-16777215".to_owned()), Some(rest)]);
}

#[tokio::test]
async fn another_process_takes_up_a_download_and_finds_the_model() {
    let cache = tempfile::tempdir().unwrap();
    let directory = cache.path().to_string_lossy().into_owned();
    let hub = FakeHub::start().await;
    hub.put(PATH, onnx());
    hub.fault_once(PATH, [Fault::Truncate(50)]);
    let scheduler = FakeScheduler::start().await;
    for (expected, requests) in [("retryable", 1), ("", 2), ("", 2)] {
        let _worker = WorkerSettings::new(CONFORMANCE, &scheduler)
            .set("COZY_HUB_URL", hub.url())
            .set("COZY_HUB_API", "direct")
            .set("WORKER_MODEL_CACHE_DIR", &directory)
            .set("WORKER_DOWNLOAD_RETRIES", "1")
            .start();
        let mut stream = scheduler.accept().await;
        let result = infer(&mut stream, MODEL).await;
        assert_eq!((result.error_type.as_str(), hub.requests().len()), (expected, requests), "{result:?}");
        assert_eq!(published(cache.path()), requests - 1);
    }
    let rest = format!("bytes=50-{}", onnx().len() - 1);
    assert_eq!(hub.requests()[1].header("range"), Some(rest.as_str()));
}

#[tokio::test]
async fn a_model_directory_is_absent_or_verified() {
    let (hub, scheduler, worker, mut stream) = hub_and_worker(&[]).await;
    let cache = worker.directory().join("models");
    let pinned = format!("{MODEL}@{}", Digest::of(Algorithm::Sha256, &onnx()));
    // By the header's digest, by the reference's, and by the reference's alone.
    for (model, faults) in [(MODEL, &[][..]), (&pinned, &[]), (&pinned, &[Fault::NoDigest])] {
        for fault in faults {
            hub.fault_always(PATH, *fault);
        }
        hub.fault_once(PATH, [Fault::Corrupt(20), Fault::Corrupt(20)]);
        let result = infer(&mut stream, model).await;
        assert_eq!((refusal(&result).0, result.retryable), ("retryable", true), "{model}");
        assert_eq!(states(&stream).last().map(String::as_str), Some("failed"));
        assert_eq!(published(&cache), 0);
    }
    let resources = registered_anew(&scheduler, &mut stream).await;
    assert!(resources.disk_models.is_empty() && resources.vram_models.is_empty(), "{resources:?}");
    assert_doubled(&infer(&mut stream, &pinned).await);
    assert_eq!(published(&cache), 1);
}

#[tokio::test]
async fn a_credential_that_was_renewed_is_tried_once_more() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "first-token").unwrap();
    let hub = FakeHub::start().await;
    hub.put(PATH, onnx());
    let (url, path) = (hub.url(), file.to_string_lossy());
    let settings =
        [("COZY_HUB_URL", url.as_str()), ("COZY_HUB_API", "direct"), ("COZY_HUB_TOKEN_FILE", &path)];
    let (_scheduler, _worker, mut stream) = worker(&settings).await;
    hub.fault_once(PATH, [Fault::Status(401), Fault::Status(401)]);
    assert_eq!(refusal(&infer(&mut stream, MODEL).await).0, "auth");
    let held = hub.hold(PATH);
    let renew = async {
        held.asked().await;
        fs::write(&file, "second-token\n").unwrap();
        drop(held);
    };
    let (result, ()) = tokio::join!(infer(&mut stream, MODEL), renew);
    assert_doubled(&result);
    let requests = hub.requests();
    let tokens: Vec<_> = requests.iter().map(|request| request.header("authorization")).collect();
    assert_eq!(tokens, [Some("Bearer first-token"), Some("Bearer first-token"), Some("Bearer second-token")]);
}

#[tokio::test]
async fn a_model_that_cannot_be_had_is_named() {
    let (hub, _scheduler, _worker, mut stream) = hub_and_worker(&[("WORKER_DOWNLOAD_RETRIES", "2")]).await;
    let result = infer(&mut stream, "acme/unknown").await;
    assert_eq!(refusal(&result), ("validation", "model cozy:acme/unknown:latest not found"));
    hub.put("/acme/text.onnx", "this is no network");
    assert_eq!(refusal(&infer(&mut stream, "acme/text.onnx").await).0, "validation");
    for (status, kind) in [(401, "auth"), (503, "retryable")] {
        let path = format!("/acme/{status}.onnx");
        hub.fault_always(&path, Fault::Status(status));
        let result = infer(&mut stream, path.trim_start_matches('/')).await;
        let (told, message) = refusal(&result);
        assert!(told == kind && message.contains(&format!("acme/{status}.onnx")), "{told}: {message}");
    }
    for model_ref in ["", "a b", "../up/m.onnx", "ftp://h/m.onnx"] {
        assert_eq!(refusal(&infer(&mut stream, model_ref).await).0, "validation", "{model_ref}");
    }
}

#[tokio::test]
async fn a_url_in_a_payload_gets_no_credential_and_a_file_is_none_of_its_business() {
    let web = FakeHub::start().await;
    web.put("/m.onnx", onnx());
    let (model, file) = (format!("{}/m.onnx?sig=1", web.url()), file_ref());
    let (_hub, _scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    for model_ref in [&model, &file] {
        assert_eq!(refusal(&infer(&mut stream, model_ref).await).0, "validation", "{model_ref}");
    }
    assert!(web.requests().is_empty());
    let url = web.url();
    let allow = [("WORKER_URL_ALLOW", url.strip_prefix("http://").unwrap())];
    let (_hub, _scheduler, _worker, mut stream) = hub_and_worker(&allow).await;
    assert_doubled(&infer(&mut stream, &model).await);
    let [request] = &web.requests()[..] else { panic!("one request: {:?}", web.requests()) };
    assert!(!request.has_authorization(), "{request:?}");
}

#[tokio::test]
async fn a_repository_comes_as_the_snapshot_that_its_tag_leads_to() {
    let hub = FakeHub::start().await;
    hub.put_repo("acme/net", "latest", &[("config.json", b"{}"), ("onnx/model.onnx", &onnx())]);
    let url = hub.url();
    let settings = [("COZY_HUB_URL", url.as_str()), ("COZY_HUB_TOKEN", "hub-token")];
    let (scheduler, worker, mut stream) = worker(&settings).await;
    assert_doubled(&infer(&mut stream, "acme/net").await);
    for request in hub.requests() {
        assert_eq!(request.has_authorization(), request.path.starts_with("/api/"), "{request:?}");
    }
    let asked = hub.requests().len();
    assert_doubled(&infer(&mut stream, "cozy:acme/net:latest").await);
    assert_eq!((hub.requests().len(), published(&worker.directory().join("models"))), (asked, 1));
    let resources = registered_anew(&scheduler, &mut stream).await;
    assert_eq!(resources.disk_models, ["acme/net", "cozy:acme/net:latest"]);
}

#[tokio::test]
async fn workers_on_one_disk_fetch_a_model_once() {
    let cache = tempfile::tempdir().unwrap();
    let directory = cache.path().to_string_lossy().into_owned();
    let settings = [("WORKER_MODEL_CACHE_DIR", directory.as_str())];
    let (hub, _scheduler, _one, mut stream) = hub_and_worker(&settings).await;
    let url = hub.url();
    let own = [("COZY_HUB_URL", url.as_str()), ("COZY_HUB_API", "direct")];
    let (_other_scheduler, _other, mut other) = worker(&[&own[..], &settings].concat()).await;
    let (result, other) = tokio::join!(infer(&mut stream, MODEL), infer(&mut other, MODEL));
    assert_doubled(&result);
    assert_doubled(&other);
    assert_eq!(hub.requests().len(), 1);
}

/// Tells the worker which models its deployment has.
pub(super) async fn configure(stream: &mut WorkerStream, allowed: &[&str], keys: &[(&str, &str)]) {
    let config = v1::DeploymentModelConfig {
        supported_model_ids: allowed.iter().map(|id| (*id).to_owned()).collect(),
        model_id_by_key: keys.iter().map(|(key, id)| ((*key).to_owned(), (*id).to_owned())).collect(),
    };
    stream.send(Msg::DeploymentModelConfig(config)).await;
}

#[tokio::test]
async fn a_deployment_says_which_models_are_used() {
    let (hub, _scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    for (allowed, keys) in [(&[][..], &[][..]), (&["acme/other"], &[]), (&["acme/other"], &[("main", MODEL)])]
    {
        configure(&mut stream, allowed, keys).await;
        for model_ref in [MODEL, "main"] {
            let result = infer(&mut stream, model_ref).await;
            assert_eq!(refusal(&result).0, "validation", "{allowed:?} {keys:?} {model_ref}");
        }
    }
    // What the deployment names is fetched ahead, and nothing else.
    assert!(hub.requests().iter().all(|request| request.path == "/acme/other"));
    for allowed in [MODEL, "cozy:acme/double.onnx:latest", "*"] {
        configure(&mut stream, &[allowed], &[]).await;
        assert_doubled(&infer(&mut stream, MODEL).await);
    }
    configure(&mut stream, &[MODEL], &[("main", MODEL)]).await;
    assert_doubled(&infer(&mut stream, "main").await);
    // The operator may name a file; the payload's key leads there.
    let file = file_ref();
    configure(&mut stream, &["*"], &[("local", &file)]).await;
    assert_doubled(&infer(&mut stream, "local").await);
    assert_eq!(refusal(&infer(&mut stream, &file).await).0, "validation");
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_on_command() {
    let (hub, scheduler, _worker, mut stream) = hub_and_worker(&[]).await;
    assert_eq!(load(&mut stream, MODEL).await, (MODEL.to_owned(), true, String::new()));
    let resources = registered_anew(&scheduler, &mut stream).await;
    assert_eq!(
        (resources.vram_models, resources.disk_models),
        (vec![MODEL.to_owned()], vec![MODEL.to_owned()])
    );
    assert_doubled(&infer(&mut stream, MODEL).await);

    unload(&mut stream, MODEL).await;
    let resources = registered_anew(&scheduler, &mut stream).await;
    assert_eq!((resources.vram_models, resources.disk_models), (vec![], vec![MODEL.to_owned()]));

    assert_doubled(&infer(&mut stream, MODEL).await);
    assert_eq!(hub.requests().len(), 1, "it was still on disk");
    let (model_id, success, message) = load(&mut stream, "acme/unknown").await;
    assert_eq!((model_id.as_str(), success), ("acme/unknown", false));
    assert_eq!(message, "LoadModelCommand: model cozy:acme/unknown:latest not found");
}

async fn load(stream: &mut WorkerStream, model_id: &str) -> (String, bool, String) {
    stream.send(Msg::LoadModelCmd(v1::LoadModelCommand { model_id: model_id.into() })).await;
    let pick = |msg| if let Msg::LoadModelResult(result) = msg { Some(result) } else { None };
    let answer = stream.wait_for("a load result", pick).await;
    (answer.model_id, answer.success, answer.error_message)
}

async fn unload(stream: &mut WorkerStream, model_id: &str) {
    stream.send(Msg::UnloadModelCmd(v1::UnloadModelCommand { model_id: model_id.into() })).await;
    let pick = |msg| if let Msg::UnloadModelResult(result) = msg { Some(result) } else { None };
    let answer = stream.wait_for("an unload result", pick).await;
    assert_eq!((answer.model_id.as_str(), answer.success), (model_id, true), "{answer:?}");
}

/// A hub that takes connections and never answers.
#[tokio::test]
async fn a_model_command_keeps_nothing_else_waiting() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let (_scheduler, mut worker, mut stream) = worker(&[("COZY_HUB_URL", &url)]).await;
    stream.send(Msg::LoadModelCmd(v1::LoadModelCommand { model_id: MODEL.into() })).await;
    let _loading = silent.accept().await.unwrap();
    stream.run("asleep", "sleep", json!({"ms": 3_600_000})).await;
    let interrupt = v1::InterruptTaskCommand { run_id: "asleep".into(), attempt: 0 };
    stream.send(Msg::InterruptRunCmd(interrupt)).await;
    assert_eq!(stream.next_result().await.error_type, "canceled");
    stream.run("awake", "echo", json!({"text": ""})).await;
    assert!(stream.next_result().await.success);
    unload(&mut stream, "acme/other").await;
    // Nor does it keep the worker.
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
}

/// Neither a source of models nor a manager for them.
#[tokio::test]
async fn without_a_model_manager_the_allow_list_counts_all_the_same() {
    let wants = Function::builder::<Value>("wants", "tests")
        .model::<ModelArtifacts>("model", ModelBinding::Payload("model_ref"))
        .asynchronous(|_: Call<Value>| async { Ok::<_, WorkerError>(()) })
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let worker = Embedded::start(Worker::builder(settings).function(wants));
    let mut stream = scheduler.accept().await;
    assert!(!stream.next_registration().await.resources.unwrap().supports_model_loading);
    configure(&mut stream, &["acme/other"], &[]).await;
    for (model_ref, words) in
        [(MODEL, "not allowed for deployment"), ("acme/other", "without a source of models")]
    {
        stream.run("r", "wants", json!({"model_ref": model_ref})).await;
        let result = stream.next_result().await;
        let (kind, message) = refusal(&result);
        assert!(kind == "validation" && message.contains(words), "{kind}: {message}");
    }
    let (model_id, success, message) = load(&mut stream, MODEL).await;
    assert_eq!((model_id.as_str(), success), (MODEL, false));
    assert_eq!(message, "LoadModelCommand: No model manager configured on worker.");
    worker.leave(stream).await;
}
