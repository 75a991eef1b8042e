//! Models in memory: who keeps them there, what the scheduler hears of it, and what this machine cannot run.

use std::{path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use gen_worker::{
    Call, CallParts, Env, Extract, Function, JobFailure, LocalModel, ModelBinding, ModelNeed, ModelRef,
    Ports, ResourceRequirements, RuntimeConfig, Worker, WorkerConfig, WorkerError, assemble,
    ports::{EventSink, LeaseHolder, ModelDevice, ModelLease, ModelManager, ModelSource, ModelStats},
};
use gen_worker_proto::scheduler::{self as v1, WorkerResources, worker_scheduler_message::Msg};
use gen_worker_runtime::FakeGpu;
use gen_worker_testkit::{FakeLease, FakeModels, FakeScheduler, WorkerStream, check_model_manager};
use gen_worker_tests::{Embedded, WorkerSettings};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::CONFORMANCE;

/// A manager of a tenant's own: the fake, counted as a GPU's.
#[derive(Default)]
struct Mine(FakeModels);

gen_worker::register_model_manager!(Mine);

#[async_trait]
impl ModelManager for Mine {
    async fn load(&self, local: &LocalModel) -> Result<(), JobFailure> {
        self.0.load(local).await
    }

    async fn lease(&self, local: &LocalModel, holder: &LeaseHolder) -> Result<ModelLease, JobFailure> {
        self.0.lease(local, holder).await
    }

    async fn unload(&self, model: &ModelRef) -> Result<(), JobFailure> {
        self.0.unload(model).await
    }

    fn resident(&self) -> Vec<String> {
        self.0.resident()
    }

    fn on_disk(&self) -> Vec<String> {
        vec!["acme/known-to-mine".to_owned()]
    }

    fn stats(&self) -> ModelStats {
        self.0.stats()
    }

    fn device(&self) -> ModelDevice {
        ModelDevice::Gpu
    }

    fn engine_version(&self) -> Option<String> {
        Some("mine 1".to_owned())
    }
}

/// What functions take of it.
struct Held(Arc<FakeLease>);

impl Extract for Held {
    const NEED: ModelNeed = ModelNeed::Resident;

    fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError> {
        parts.lease().map(Self)
    }
}

/// Every model is on disk, and has one file.
struct Everywhere;

#[async_trait]
impl ModelSource for Everywhere {
    async fn ensure(&self, model: &ModelRef, _: Arc<dyn EventSink>) -> Result<LocalModel, JobFailure> {
        let files = [("net".to_owned(), Path::new("/m/net").to_owned())].into();
        Ok(LocalModel { model: model.clone(), root: "/m".into(), files, size_bytes: 1, pin: None })
    }

    fn on_disk(&self) -> Vec<String> {
        vec!["acme/on-disk".to_owned()]
    }

    fn at_once(&self) -> usize {
        1
    }
}

/// Holds its model until the test lets it go, and says which it was.
fn hold(name: &'static str, resources: ResourceRequirements, ends: Arc<Semaphore>) -> Function {
    Function::builder::<Value>(name, "tests")
        .resources(resources)
        .model::<Held>("model", ModelBinding::Payload("model"))
        .asynchronous(move |call: Call<Value>| {
            let ends = ends.clone();
            async move {
                let model: Held = call.extract("model")?;
                ends.acquire().await.expect("it is never closed").forget();
                Ok::<_, WorkerError>(json!({"model": model.0.model().known_as()}))
            }
        })
        .unwrap()
}

struct Bench {
    worker: Embedded,
    stream: WorkerStream,
    ends: Arc<Semaphore>,
    resources: WorkerResources,
}

/// A worker with a GPU of 2 GiB and this manager, whose functions hold their models.
async fn bench(scheduler: &FakeScheduler, manager: Arc<dyn ModelManager>) -> Bench {
    bench_with(scheduler, manager, Duration::from_millis(20)).await
}

/// With so long between its heartbeats.
async fn bench_with(scheduler: &FakeScheduler, manager: Arc<dyn ModelManager>, heartbeat: Duration) -> Bench {
    let gpu = FakeGpu { count: 1, memory_bytes: 2 << 30, name: String::new(), driver: String::new() };
    let settings =
        RuntimeConfig { fake_gpu: Some(gpu), heartbeat, ..Embedded::settings(&scheduler.addr().to_string()) };
    let ends = Arc::new(Semaphore::new(0));
    let needs = |gib, requires_gpu| ResourceRequirements {
        min_vram_gb: Some(gib),
        requires_gpu,
        ..ResourceRequirements::default()
    };
    let ports =
        Ports { model_source: Some(Arc::new(Everywhere)), model_manager: Some(manager), ..Ports::default() };
    let builder = Worker::builder(settings)
        .ports(ports)
        .function(hold("hold", ResourceRequirements::default(), ends.clone()))
        .function(hold("fits", needs(2.0, false), ends.clone()))
        .function(hold("large", needs(2.5, false), ends.clone()))
        .function(hold("on_gpu", needs(1.0, true), ends.clone()));
    let worker = Embedded::start(builder);
    let mut stream = scheduler.accept().await;
    let registration = stream.next_registration().await;
    Bench { worker, stream, ends, resources: registration.resources.expect("it names its resources") }
}

async fn unload(stream: &mut WorkerStream, model_id: &str) -> (bool, String) {
    stream.send(Msg::UnloadModelCmd(v1::UnloadModelCommand { model_id: model_id.into() })).await;
    let pick = |msg| if let Msg::UnloadModelResult(result) = msg { Some(result) } else { None };
    let answer = stream.wait_for("an unload result", pick).await;
    (answer.success, answer.error_message)
}

/// Waits for a heartbeat with these models in memory.
async fn resident(stream: &mut WorkerStream, models: &[&str]) -> WorkerResources {
    loop {
        let resources = stream.next_registration().await.resources.expect("it names its resources");
        if resources.vram_models == models {
            return resources;
        }
    }
}

#[tokio::test]
async fn a_model_that_a_run_holds_is_not_unloaded() {
    let scheduler = FakeScheduler::start().await;
    let mut bench = bench(&scheduler, Arc::new(Mine::default())).await;
    let stream = &mut bench.stream;
    stream.run("the-run", "hold", json!({"model": "acme/held"})).await;
    let resources = resident(stream, &["acme/held"]).await;
    assert_eq!(resources.disk_models, ["acme/on-disk", "acme/known-to-mine"]);
    assert_eq!(resources.onnxruntime_version, "mine 1");
    let refused = (false, "the model is in use by the-run".to_owned());
    assert_eq!(unload(stream, "acme/held").await, refused);
    bench.ends.add_permits(1);
    assert!(stream.next_result().await.success);
    assert_eq!(unload(stream, "cozy:acme/held:latest").await, (true, String::new()));
    resident(stream, &[]).await;
    bench.worker.leave(bench.stream).await;
}

#[tokio::test]
async fn a_scheduler_that_asks_hears_how_models_come_and_go_before_the_next_heartbeat() {
    let scheduler = FakeScheduler::start().await;
    let manager = Arc::new(FakeModels::default());
    let mut bench = bench_with(&scheduler, manager, Duration::from_secs(3600)).await;
    let stream = &mut bench.stream;
    assert_eq!(bench.resources.model_memory, Some(v1::ModelMemory::default()));
    stream.hello(&["model-memory"]).await;
    bench.ends.add_permits(2);
    for (run, expected) in [
        ("first", v1::ModelMemory { misses: 1, loads: 1, ..Default::default() }),
        ("second", v1::ModelMemory { misses: 1, loads: 1, hits: 1, ..Default::default() }),
    ] {
        stream.run(run, "hold", json!({"model": "acme/m"})).await;
        while stream.next_registration().await.resources.unwrap().model_memory != Some(expected) {}
    }
    bench.worker.leave(bench.stream).await;
}

#[tokio::test]
async fn what_this_machine_cannot_run_is_not_offered() {
    for (manager, offered, told) in [
        (Arc::new(Mine::default()) as Arc<dyn ModelManager>, vec!["fits", "hold", "on_gpu"], 1),
        (Arc::new(FakeModels::default()), vec!["fits", "hold"], 2),
    ] {
        let scheduler = FakeScheduler::start().await;
        let mut bench = bench(&scheduler, manager).await;
        assert_eq!(bench.resources.available_functions, offered);
        bench.ends.add_permits(offered.len());
        for function in ["fits", "hold", "on_gpu", "large"] {
            bench.stream.run(function, function, json!({"model": "acme/m"})).await;
            let result = bench.stream.next_result().await;
            assert_eq!(result.success, offered.contains(&function), "{result:?}");
            let refusal = match function {
                "large" => "it needs 2.5 GiB of device memory; this machine has 2.0 GiB",
                _ => "it requires a GPU, and models run on the processor here",
            };
            if !result.success {
                assert_eq!((&*result.error_type, &*result.safe_message), ("resource", refusal));
            }
        }
        let events = bench.stream.events("");
        assert_eq!(events.iter().filter(|event| event.event_type == "function.unfit").count(), told);
        bench.worker.leave(bench.stream).await;
    }
}

/// The settings of a worker with this model manager.
fn managed(path: &str) -> WorkerConfig {
    let env = Env::from_iter([("SCHEDULER_ADDR", "127.0.0.1:1"), ("MODEL_MANAGER_CLASS", path)]);
    WorkerConfig::from_env(&env).unwrap()
}

#[test]
fn a_registered_manager_is_named_by_its_path() {
    let ports = assemble(&managed("it::residency::Mine"), &[]).unwrap();
    let manager = ports.model_manager.unwrap();
    assert_eq!(manager.engine_version().as_deref(), Some("mine 1"));
    let error = assemble(&managed("it::Other"), &[]).err().expect("there is none");
    assert_eq!(error.to_string(), "MODEL_MANAGER_CLASS is `it::Other`: expected `it::residency::Mine`");
}

#[tokio::test]
async fn an_unknown_manager_ends_the_start() {
    let scheduler = FakeScheduler::start().await;
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("MODEL_MANAGER_CLASS", "a::B").start();
    assert_eq!(worker.ended().await.code(), Some(2));
    let log = worker.log();
    assert!(log.contains("MODEL_MANAGER_CLASS is `a::B`: expected a type that is registered"), "{log}");
}

#[tokio::test]
async fn a_tenants_manager_is_held_to_the_same() {
    let local = |name: &str, files| LocalModel {
        model: ModelRef::parse(name).unwrap(),
        root: "/m".into(),
        files,
        size_bytes: 0,
        pin: None,
    };
    let good = local("acme/good", [("m".to_owned(), "/m/m".into())].into());
    check_model_manager(&Mine::default(), &good, &local("acme/broken", Default::default())).await;
}
