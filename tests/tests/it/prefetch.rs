//! The deployment's models, fetched before a run asks for them.

use std::{fs, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use gen_worker::{
    Call, Env, Function, ModelArtifacts, ModelBinding, ModelRef, Ports, RuntimeConfig, Worker, WorkerConfig,
    WorkerError, assemble,
};
use gen_worker_core::{
    JobFailure, LocalModel,
    ports::{EventSink, ModelSource},
};
use gen_worker_proto::scheduler::{WorkerResources, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeHub, FakeScheduler, Fault, WorkerStream};
use gen_worker_tests::{Embedded, WorkerSettings};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CONFORMANCE, models::configure, worker};

const MAIN: &str = "acme/main.onnx";
const EXTRA: &str = "acme/extra.onnx";

/// A function with the models that the deployment has under these keys.
fn function(name: &'static str, keys: &[&'static str]) -> Function {
    let mut function = Function::builder::<Value>(name, "tests");
    for key in keys {
        function = function.model::<ModelArtifacts>(key, ModelBinding::Deployment(key));
    }
    function.asynchronous(|_: Call<Value>| async { Ok::<_, WorkerError>(()) }).unwrap()
}

/// A hub, a scheduler, and a cache on disk, for workers that report only what is new.
struct Stage {
    hub: FakeHub,
    scheduler: FakeScheduler,
    cache: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let hub = FakeHub::start().await;
        hub.put(&path(MAIN), "main");
        hub.put(&path(EXTRA), "extra");
        Self { hub, scheduler: FakeScheduler::start().await, cache: tempfile::tempdir().unwrap() }
    }

    /// A worker whose deployment has these models, with a stream up.
    async fn enter(&self, models: &[(&str, &str)], settings: &[(&str, &str)]) -> (Embedded, WorkerStream) {
        let (url, cache) = (self.hub.url(), self.cache.path().to_string_lossy());
        let own = [
            ("COZY_HUB_URL", url.as_str()),
            ("COZY_HUB_API", "direct"),
            ("WORKER_MODEL_CACHE_DIR", &cache),
            ("WORKER_DOWNLOAD_RETRIES", "1"),
        ];
        let config = WorkerConfig::from_env(&own.iter().chain(settings).copied().collect::<Env>()).unwrap();
        let runtime = RuntimeConfig {
            heartbeat: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(3600),
            ..Embedded::settings(&self.scheduler.addr().to_string())
        };
        let functions =
            vec![function("both", &["main", "extra"]), function("one", &["main"]), function("plain", &[])];
        let served = functions.clone();
        let assembled = tokio::task::spawn_blocking(move || assemble(&config, &functions));
        let ports = assembled.await.unwrap().unwrap();
        let models = models.iter().map(|(key, id)| ((*key).to_owned(), ModelRef::parse(id).unwrap()));
        let worker = Worker::builder(runtime).functions(served).ports(ports).models(models);
        (Embedded::start(worker), self.scheduler.accept().await)
    }

    /// The paths that the hub was asked for, oldest first.
    fn asked(&self) -> Vec<String> {
        self.hub.requests().into_iter().map(|request| request.path).collect()
    }
}

fn path(model: &str) -> String {
    format!("/{model}")
}

async fn report(stream: &mut WorkerStream) -> WorkerResources {
    stream.next_registration().await.resources.unwrap()
}

/// What is ready, and what is loading.
fn functions(report: &WorkerResources) -> (String, String) {
    (report.available_functions.join(" "), report.loading_functions.join(" "))
}

fn told(ready: &str, loading: &str) -> (String, String) {
    (ready.to_owned(), loading.to_owned())
}

/// The states that the download of a model went through, as they were told of the worker and of no run.
fn states(stream: &WorkerStream, model: &str) -> Vec<String> {
    let events = stream.events("").into_iter().filter(|event| event.event_type == "model.download");
    let payloads = events.map(|event| serde_json::from_slice::<Value>(&event.payload_json).unwrap());
    let of_model = payloads.filter(|payload| payload["model_id"] == model);
    of_model.map(|payload| payload["state"].as_str().unwrap().to_owned()).collect()
}

/// Waits for the end of a model's download and says how it ended: there is one end.
async fn end_of(stream: &mut WorkerStream, model: &str) -> String {
    let ends = |states: &[String]| states.iter().filter(|state| *state != "downloading").count();
    while ends(&states(stream, model)) == 0 {
        stream.recv().await;
    }
    let states = states(stream, model);
    assert_eq!(ends(&states), 1, "{states:?}");
    states.last().unwrap().clone()
}

async fn succeeds(stream: &mut WorkerStream, function: &str) {
    stream.run("r", function, json!({})).await;
    let result = stream.next_result().await;
    assert!(result.success, "{function}: {result:?}");
}

#[tokio::test]
async fn only_ready_functions_are_advertised() {
    let stage = Stage::set().await;
    let (main, extra) = (stage.hub.hold(&path(MAIN)), stage.hub.hold(&path(EXTRA)));
    let models = [("main", MAIN), ("extra", EXTRA)];
    let (worker, mut stream) = stage.enter(&models, &[]).await;
    let first = report(&mut stream).await;
    assert_eq!(functions(&first), told("plain", "both one"));
    assert_eq!((first.function_schemas.len(), first.disk_models.len()), (3, 0));
    drop(main);
    let second = report(&mut stream).await;
    assert_eq!((functions(&second), second.disk_models), (told("one plain", "both"), vec![MAIN.to_owned()]));
    drop(extra);
    let third = report(&mut stream).await;
    assert_eq!(functions(&third), told("both one plain", ""));
    assert_eq!(third.disk_models, [EXTRA, MAIN]);
    for model in [MAIN, EXTRA] {
        assert_eq!(end_of(&mut stream, model).await, "completed");
    }
    worker.leave(stream).await;

    // What is on disk is ready from the first word on.
    let (worker, mut stream) = stage.enter(&models, &[]).await;
    assert_eq!(functions(&report(&mut stream).await), told("both one plain", ""));
    for model in [MAIN, EXTRA] {
        assert_eq!(end_of(&mut stream, model).await, "already_present");
    }
    worker.leave(stream).await;
    assert_eq!(stage.asked().len(), 2);
}

#[tokio::test]
async fn models_are_fetched_in_the_order_given_so_many_at_once() {
    let stage = Stage::set().await;
    let models = ["acme/c", "acme/a", "acme/d", "acme/b"];
    models.iter().for_each(|model| stage.hub.put(&path(model), *model));
    let held: Vec<_> = models.iter().map(|model| stage.hub.hold(&path(model))).collect();
    let (worker, mut stream) = stage.enter(&[], &[("WORKER_MAX_CONCURRENT_DOWNLOADS", "2")]).await;
    configure(&mut stream, &models, &[]).await;
    let mut held = held.into_iter();
    let (c, a) = (held.next().unwrap(), held.next().unwrap());
    c.asked().await;
    a.asked().await;
    succeeds(&mut stream, "plain").await;
    assert_eq!(stage.asked().len(), 2);
    let (d, b) = (held.next().unwrap(), held.next().unwrap());
    drop(a);
    d.asked().await;
    drop(d);
    b.asked().await;
    drop((b, c));
    for model in &models {
        assert_eq!(end_of(&mut stream, model).await, "completed");
    }
    assert_eq!(stage.asked()[2..], [path("acme/d"), path("acme/b")]);
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_run_for_a_function_that_is_loading_waits_for_its_model() {
    let stage = Stage::set().await;
    let held = stage.hub.hold(&path(MAIN));
    let (worker, mut stream) = stage.enter(&[("main", MAIN)], &[]).await;
    assert_eq!(functions(&report(&mut stream).await).1, "both one");
    stream.hello(&["run-accepted"]).await;
    stream.run("early", "one", json!({})).await;
    let accepted = |msg| matches!(msg, Msg::RunAccepted(_)).then_some(());
    stream.wait_for("the run to be accepted", accepted).await;
    held.asked().await;
    drop(held);
    let result = stream.next_result().await;
    assert!(result.success, "{result:?}");
    assert_eq!(stage.asked(), [path(MAIN)]);
    worker.leave(stream).await;
}

/// A model that is far behind in the queue, and on disk before its turn has come.
#[tokio::test]
async fn a_model_that_a_run_finds_makes_its_functions_ready() {
    let stage = Stage::set().await;
    let _held = stage.hub.hold(&path(EXTRA));
    let one_at_once = [("WORKER_MAX_CONCURRENT_DOWNLOADS", "1")];
    let (worker, mut stream) = stage.enter(&[("extra", EXTRA), ("main", MAIN)], &one_at_once).await;
    assert_eq!(functions(&report(&mut stream).await), told("plain", "both one"));
    let (other, mut others) = stage.enter(&[("main", MAIN)], &[]).await;
    assert_eq!(end_of(&mut others, MAIN).await, "completed");
    stream.run("r", "one", json!({})).await;
    // The report and the result, in either order.
    let (mut ready, mut succeeded) = (false, false);
    while !(ready && succeeded) {
        match stream.recv().await.msg {
            Some(Msg::WorkerRegistration(report)) => {
                assert_eq!(functions(&report.resources.unwrap()), told("one plain", "both"));
                ready = true;
            }
            Some(Msg::RunResult(result)) => {
                assert!(result.success, "{result:?}");
                succeeded = true;
            }
            _ => {}
        }
    }
    other.leave(others).await;
    worker.leave(stream).await;
}

/// A source that cannot be relied on.
struct Panics;

#[async_trait]
impl ModelSource for Panics {
    async fn ensure(&self, _: &ModelRef, _: Arc<dyn EventSink>) -> Result<LocalModel, JobFailure> {
        panic!("a fault in a source")
    }

    fn on_disk(&self) -> Vec<String> {
        Vec::new()
    }

    fn at_once(&self) -> usize {
        1
    }
}

#[tokio::test]
async fn a_fault_in_the_source_holds_nothing_back() {
    let scheduler = FakeScheduler::start().await;
    let ports = Ports { model_source: Some(Arc::new(Panics)), ..Ports::default() };
    let models = [MAIN, EXTRA].map(|model| (model.to_owned(), ModelRef::parse(model).unwrap()));
    let settings = RuntimeConfig {
        heartbeat: Duration::from_millis(20),
        ..Embedded::settings(&scheduler.addr().to_string())
    };
    let builder = Worker::builder(settings).function(function("needy", &[MAIN, EXTRA]));
    let worker = Embedded::start(builder.ports(ports).models(models));
    let mut stream = scheduler.accept().await;
    while functions(&report(&mut stream).await) != told("needy", "") {}
    stream.run("r", "needy", json!({})).await;
    assert_eq!(stream.next_result().await.error_type, "internal");
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_fetch_that_fails_holds_nothing_back_and_is_tried_again_by_a_run() {
    let stage = Stage::set().await;
    stage.hub.fault_once(&path(MAIN), [Fault::Status(503)]);
    let held = stage.hub.hold(&path(MAIN));
    let models = [("main", MAIN), ("extra", "acme/unknown")];
    let (worker, mut stream) = stage.enter(&models, &[]).await;
    assert_eq!(functions(&report(&mut stream).await), told("plain", "both one"));
    drop(held);
    while functions(&report(&mut stream).await) != told("both one plain", "") {}
    for model in [MAIN, "acme/unknown"] {
        assert_eq!(end_of(&mut stream, model).await, "failed");
    }
    succeeds(&mut stream, "one").await;
    stream.run("r", "both", json!({})).await;
    let result = stream.next_result().await;
    let kind = (result.error_type.as_str(), result.safe_message.as_str());
    assert_eq!(kind, ("validation", "model cozy:acme/unknown:latest not found"));
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_later_configuration_takes_the_place_of_the_earlier() {
    let stage = Stage::set().await;
    stage.hub.put("/acme/next", "next");
    let held = stage.hub.hold(&path(MAIN));
    let (worker, mut stream) = stage.enter(&[], &[("WORKER_MAX_CONCURRENT_DOWNLOADS", "1")]).await;
    assert_eq!(functions(&report(&mut stream).await), told("both one plain", ""));
    configure(&mut stream, &[MAIN, EXTRA], &[("main", MAIN), ("extra", EXTRA)]).await;
    assert_eq!(functions(&report(&mut stream).await), told("plain", "both one"));
    held.asked().await;
    configure(&mut stream, &["acme/next"], &[("extra", "acme/next")]).await;
    assert_eq!(functions(&report(&mut stream).await), told("one plain", "both"));
    drop(held);
    assert_eq!(functions(&report(&mut stream).await), told("both one plain", ""));
    // What was begun is seen to its end; what was not is not fetched.
    assert_eq!(end_of(&mut stream, MAIN).await, "completed");
    assert_eq!(stage.asked(), [path(MAIN), path("acme/next")]);
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_worker_that_leaves_does_not_wait_for_what_it_fetches_ahead() {
    let stage = Stage::set().await;
    let held = stage.hub.hold(&path(MAIN));
    let (worker, stream) = stage.enter(&[("main", MAIN), ("extra", EXTRA)], &[]).await;
    held.asked().await;
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_fetch_that_fails_is_one_line_with_its_model_and_what_to_do() {
    let stage = Stage::set().await;
    let url = stage.hub.url();
    let settings = [("COZY_HUB_URL", url.as_str()), ("COZY_HUB_API", "direct"), ("RUST_LOG", "warn")];
    let (_scheduler, worker, mut stream) = worker(&settings).await;
    configure(&mut stream, &["acme/unknown", "ftp://nowhere", MAIN], &[]).await;
    assert_eq!(end_of(&mut stream, "acme/unknown").await, "failed");
    assert_eq!(end_of(&mut stream, MAIN).await, "completed");
    worker.says("fetched ahead; a run").await;
    worker.says("scheme `ftp:`").await;
    let log = worker.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("acme/unknown")).collect();
    let [line] = &lines[..] else { panic!("one line: {log}") };
    assert!(line.contains("not found") && line.contains("correct the reference"), "{line}");
}

/// Writes a project's `cozy.toml` with these models, whose keys are not in alphabetical order.
fn cozy_toml(directory: &Path) {
    let text = format!("[models]\nsecond = \"{MAIN}\"\nfirst = \"cozy:{EXTRA}\"\n");
    fs::write(directory.join("cozy.toml"), text).unwrap();
}

#[tokio::test]
async fn the_models_of_cozy_toml_are_fetched_and_no_others_are_used() {
    let stage = Stage::set().await;
    let settings = WorkerSettings::new(CONFORMANCE, &stage.scheduler)
        .set("COZY_HUB_URL", stage.hub.url())
        .set("COZY_HUB_API", "direct")
        .set("WORKER_MAX_CONCURRENT_DOWNLOADS", "1");
    cozy_toml(settings.directory());
    let _worker = settings.start();
    let mut stream = stage.scheduler.accept().await;
    assert_eq!(end_of(&mut stream, &format!("cozy:{EXTRA}")).await, "completed");
    assert_eq!(stage.asked(), [path(MAIN), path(EXTRA)]);
    for (model_ref, message) in [("acme/other", "not allowed for deployment"), ("first", "")] {
        stream.run("r", "infer", json!({"model_ref": model_ref, "values": []})).await;
        let result = stream.next_result().await;
        assert!(result.error_type == "validation" && result.safe_message.contains(message), "{result:?}");
    }
    assert_eq!(stage.asked().len(), 2, "it was on disk, though it is no network");
}
