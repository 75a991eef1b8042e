//! What a worker says of itself (contract §2.7).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gen_worker::{Call, Function, RuntimeConfig, Worker, WorkerError};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, WorkerSettings};

use super::{CONFORMANCE, worker};

#[tokio::test]
async fn the_first_message_is_a_full_registration() {
    let scheduler = FakeScheduler::start().await;
    let _worker = WorkerSettings::new(CONFORMANCE, &scheduler)
        .set("WORKER_ID", "w-1")
        .set("DEPLOYMENT_ID", "d-1")
        .set("RUNPOD_POD_ID", "p-1")
        .set("WORKER_MAX_CONCURRENCY", "7")
        .set("WORKER_CUDA_VERSION", "12.4")
        .set("WORKER_FAKE_GPU_COUNT", "2")
        .set("WORKER_FAKE_GPU_MEMORY_BYTES", "1000")
        .set("AUTH_TOKEN", "secret-token")
        .start();
    let mut stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some("Bearer secret-token"));
    let Some(Msg::WorkerRegistration(registration)) = stream.recv().await.msg else {
        panic!("a registration")
    };
    assert!(!registration.is_heartbeat);
    let has = registration.resources.unwrap();
    let identity = (has.worker_id.as_str(), has.deployment_id.as_str(), has.runpod_pod_id.as_str());
    assert_eq!(identity, ("w-1", "d-1", "p-1"));
    assert!(has.cpu_cores > 0 && has.memory_bytes > 0);
    assert_eq!((has.gpu_count, has.gpu_memory_bytes, has.gpu_memory_free_bytes), (2, 1000, 1000));
    assert_eq!((has.gpu_memory_used_bytes, has.gpu_is_busy, has.gpu_name.as_str()), (0, false, "FakeGPU"));
    assert_eq!((has.max_concurrency, has.cuda_version.as_str()), (7, "12.4"));
    assert_eq!(has.function_concurrency.into_iter().collect::<Vec<_>>(), [("limited".to_owned(), 1)]);
    assert!(has.supports_model_loading && has.onnxruntime_version.starts_with("1."));
    let (last, functions) = has.available_functions.split_last().unwrap();
    assert!(functions.is_sorted() && last == "mirror", "handlers of realtime sessions come after functions");
    assert!(!has.function_schemas.iter().any(|schema| schema.name == "mirror"));
    assert!(has.features.contains(&"result-ack".to_owned()));
    let count = has.function_schemas.iter().find(|schema| schema.name == "count").unwrap();
    assert!(count.incremental_output);
    let infer = has.function_schemas.iter().find(|schema| schema.name == "infer").unwrap();
    let input: serde_json::Value = serde_json::from_slice(&infer.input_schema_json).unwrap();
    assert_eq!(input["$ref"], "#/$defs/Infer");
    let injected: serde_json::Value = serde_json::from_slice(&infer.injection_json).unwrap();
    assert_eq!(injected[0]["model_ref"], serde_json::json!({"key": "model_ref", "source": "payload"}));
}

#[tokio::test]
async fn no_schema_speaks_of_output_upload() {
    let scheduler = FakeScheduler::start().await;
    let _worker = WorkerSettings::new(CONFORMANCE, &scheduler).start();
    let schemas = scheduler.accept().await.next_registration().await.resources.unwrap().function_schemas;
    let raw = schemas.iter().find(|schema| schema.name == "raw").unwrap();
    assert!(!raw.input_schema_json.is_empty() && !raw.output_schema_json.is_empty());
    for schema in schemas {
        let parts = [
            &schema.input_schema_json,
            &schema.output_schema_json,
            &schema.injection_json,
            &schema.delta_schema_json,
        ];
        let text = parts.map(|part| String::from_utf8_lossy(part)).concat();
        for word in ["output_upload", "put_url", "secret_access_key"] {
            assert!(!text.contains(word), "{}: {text}", schema.name);
        }
    }
}

#[tokio::test]
async fn heartbeats_repeat_the_registration() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let heartbeat = stream.next_registration().await;
    assert!(heartbeat.is_heartbeat);
    assert!(!heartbeat.resources.unwrap().function_schemas.is_empty());
}

/// A worker on whose every thread for user code, and beyond, `spin` spins until it is released.
struct Spinning {
    worker: Embedded,
    stream: WorkerStream,
    runs: usize,
    released: Release,
}

impl Spinning {
    async fn start(scheduler: &FakeScheduler) -> Self {
        let released = Arc::new(AtomicBool::new(false));
        let heartbeat = Duration::from_millis(50);
        let settings = RuntimeConfig { heartbeat, ..Embedded::settings(&scheduler.addr().to_string()) };
        let worker = Embedded::start(Worker::builder(settings).function(spin(released.clone())));
        let mut stream = scheduler.accept().await;
        stream.next_registration().await;
        let runs = std::thread::available_parallelism().unwrap().get() * 2;
        for n in 0..runs {
            stream.run(&n.to_string(), "spin", serde_json::json!({})).await;
        }
        Self { worker, stream, runs, released: Release(released) }
    }
}

/// Ends what spins when the test ends, also when it fails.
struct Release(Arc<AtomicBool>);

impl Drop for Release {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn spin(released: Arc<AtomicBool>) -> Function {
    Function::builder::<serde_json::Value>("spin", "tests")
        .asynchronous(move |_: Call<serde_json::Value>| {
            let released = released.clone();
            async move {
                while !released.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                Ok::<_, WorkerError>(())
            }
        })
        .unwrap()
}

/// The heartbeats that release what spins must come all the same.
#[tokio::test]
async fn user_code_cannot_delay_a_heartbeat() {
    let scheduler = FakeScheduler::start().await;
    let mut spinning = Spinning::start(&scheduler).await;
    for _ in 0..5 {
        assert!(spinning.stream.next_registration().await.is_heartbeat);
    }
    drop(spinning.released);
    for _ in 0..spinning.runs {
        assert!(spinning.stream.next_result().await.success);
    }
    spinning.worker.leave(spinning.stream).await;
}

#[tokio::test]
async fn user_code_cannot_delay_a_cancel_or_a_drain() {
    let scheduler = FakeScheduler::start().await;
    let mut spinning = Spinning::start(&scheduler).await;
    let interrupt = v1::InterruptTaskCommand { run_id: "0".into(), attempt: 0 };
    spinning.stream.send(Msg::InterruptRunCmd(interrupt)).await;
    let canceled = spinning.stream.next_result().await;
    assert_eq!((canceled.run_id.as_str(), canceled.error_type.as_str()), ("0", "canceled"));
    spinning.worker.shutdown().drain();
    for _ in 1..spinning.runs {
        assert_eq!(spinning.stream.next_result().await.error_type, "retryable");
    }
    spinning.worker.leave(spinning.stream).await;
}

#[tokio::test]
async fn what_requires_a_gpu_is_not_offered_where_there_is_none() {
    for (gpus, is_offered) in [("0", false), ("1", true)] {
        let scheduler = FakeScheduler::start().await;
        let process = WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_FAKE_GPU_COUNT", gpus).start();
        let mut stream = scheduler.accept().await;
        let offered = stream.next_registration().await.resources.unwrap().available_functions;
        assert_eq!(offered.contains(&"attach".to_owned()), is_offered, "{gpus}: {offered:?}");
        stream.run("r", "attach", serde_json::json!({"names": [], "size": 0})).await;
        let result = stream.next_result().await;
        let reason = "it requires a GPU, and this machine shows none";
        if !is_offered {
            assert_eq!((&*result.error_type, &*result.safe_message), ("resource", reason));
            process.says("function not offered").await;
        }
        let told = stream.events("").into_iter().filter(|event| event.event_type == "function.unfit");
        let payload = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
        let told: Vec<_> = told.map(|event| payload(&event.payload_json)).collect();
        let said = |told: &serde_json::Value| told["function"] == "attach" && told["reason"] == reason;
        assert!(told.iter().all(said), "{told:?}");
        assert_eq!(told.len(), usize::from(!is_offered));
        let log = process.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("function not offered")).collect();
        assert!(lines.iter().all(|line| line.contains(reason) && line.contains("attach")), "{lines:?}");
        assert_eq!(lines.len(), usize::from(!is_offered));
    }
}
