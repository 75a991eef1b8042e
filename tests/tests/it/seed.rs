//! The function of the original's README, translated: an untyped map in, an untyped map out.

use gen_worker::{ActionContext, Env, Worker, WorkerConfig, WorkerError, function, worker_function};
use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::unpack;
use serde_json::{Map, Value, json};

#[worker_function(model_family = "sdxl", requires_gpu = true)]
async fn generate(
    ctx: ActionContext,
    prompt_details: Map<String, Value>,
) -> Result<Map<String, Value>, WorkerError> {
    let prompt = prompt_details.get("prompt").and_then(Value::as_str);
    let prompt = prompt.ok_or_else(|| WorkerError::validation("`prompt` is missing"))?;
    ctx.check_canceled()?;
    ctx.progress(0.5, "generating");
    Ok(Map::from_iter([("image_url".to_owned(), format!("https://pictures.example/{prompt}.png").into())]))
}

#[tokio::test]
async fn the_readme_function_of_the_original_runs() {
    let scheduler = FakeScheduler::start().await;
    let address = scheduler.addr().to_string();
    let env = Env::from_iter([("SCHEDULER_ADDR", address.as_str()), ("WORKER_FAKE_GPU_COUNT", "1")]);
    let config = WorkerConfig::from_env(&env).unwrap();
    let worker = Worker::builder(config.runtime).function(function!(generate)).build().unwrap();
    let shutdown = worker.shutdown();
    let working = std::thread::spawn(move || worker.run());
    let mut stream = scheduler.accept().await;
    let resources = stream.next_registration().await.resources.unwrap();
    assert_eq!(resources.available_functions, ["generate"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&resources.function_schemas[0].input_schema_json).unwrap()["type"],
        "object"
    );
    stream.run("r", "generate", json!({"prompt": "cat", "seed": u64::MAX})).await;
    let output: Value = unpack(&stream.next_result().await.output_payload);
    assert_eq!(output, json!({"image_url": "https://pictures.example/cat.png"}));
    assert_eq!(stream.events("r")[0].event_type, "job.progress");
    shutdown.drain();
    stream.ended().await.unwrap();
    stream.end_ok();
    tokio::task::spawn_blocking(|| working.join().unwrap().unwrap()).await.unwrap();
}
