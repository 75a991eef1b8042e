//! What a worker says of itself (contract §2.7).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gen_worker::{Call, Env, Function, Worker, WorkerConfig, WorkerError};
use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::WorkerSettings;

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
async fn heartbeats_repeat_the_registration() {
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let heartbeat = stream.next_registration().await;
    assert!(heartbeat.is_heartbeat);
    assert!(!heartbeat.resources.unwrap().function_schemas.is_empty());
}

/// A function that never yields, on every thread that user code has: the heartbeats that release it must come all the same.
#[tokio::test]
async fn user_code_cannot_delay_a_heartbeat() {
    let scheduler = FakeScheduler::start().await;
    let address = scheduler.addr().to_string();
    let released = Arc::new(AtomicBool::new(false));
    let spin = {
        let released = released.clone();
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
    };
    let config = WorkerConfig::from_env(&Env::from_iter([("SCHEDULER_ADDR", address)])).unwrap();
    let runtime = gen_worker::RuntimeConfig { heartbeat: Duration::from_millis(50), ..config.runtime };
    let worker = Worker::builder(runtime).function(spin).build().unwrap();
    let shutdown = worker.shutdown();
    let working = std::thread::spawn(move || worker.run());
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    let threads = std::thread::available_parallelism().unwrap().get();
    for n in 0..threads * 2 {
        stream.run(&format!("r{n}"), "spin", serde_json::json!({})).await;
    }
    for _ in 0..5 {
        assert!(stream.next_registration().await.is_heartbeat);
    }
    released.store(true, Ordering::Relaxed);
    for _ in 0..threads * 2 {
        assert!(stream.next_result().await.success);
    }
    shutdown.drain();
    stream.ended().await.unwrap();
    stream.end_ok();
    tokio::task::spawn_blocking(|| working.join().unwrap().unwrap()).await.unwrap();
}
