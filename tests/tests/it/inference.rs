//! Runs that are told to stop while their model computes.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use async_trait::async_trait;
use gen_worker::{
    Call, ConfigErrors, Env, Function, JobFailure, LocalModel, ModelBinding, ModelRef, OrtModel, Ports,
    Worker, WorkerError,
    ort::{
        OrtConfig, OrtModels, Tensor,
        ndarray::{arr0, array},
    },
    ports::{EventSink, ModelSource},
};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, pack};
use serde_json::{Value, json};

/// Counts to a number, in a loop of one small step.
const COUNT_UP: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/gen-worker-models-ort/tests/fixtures/count_up.onnx");

/// Every model is this one.
struct CountUp;

#[async_trait]
impl ModelSource for CountUp {
    async fn ensure(&self, model: &ModelRef, _: Arc<dyn EventSink>) -> Result<LocalModel, JobFailure> {
        Ok(LocalModel {
            model: model.clone(),
            root: Path::new(COUNT_UP).parent().expect("it lies in a folder").to_owned(),
            files: BTreeMap::from([("count_up.onnx".to_owned(), COUNT_UP.into())]),
            size_bytes: 1,
            pin: None,
        })
    }

    fn on_disk(&self) -> Vec<String> {
        Vec::new()
    }

    fn at_once(&self) -> usize {
        1
    }
}

/// More than a machine counts in hundreds of years.
fn endless() -> [(&'static str, Tensor); 2] {
    [("rounds", arr0(i64::MAX).into()), ("x", array![0_i64].into())]
}

fn begin(call: &mut Call<Value>) -> Result<OrtModel, WorkerError> {
    let model = call.extract("model")?;
    call.context.progress(0.0, "at work");
    Ok(model)
}

fn counts() -> Function {
    Function::builder::<Value>("counts", "tests")
        .model::<OrtModel>("model", ModelBinding::Payload("model"))
        .asynchronous(|mut call: Call<Value>| async move {
            begin(&mut call)?.run(endless()).await?;
            Ok::<_, WorkerError>(json!({}))
        })
        .unwrap()
}

fn counts_and_blocks() -> Function {
    Function::builder::<Value>("counts_and_blocks", "tests")
        .model::<OrtModel>("model", ModelBinding::Payload("model"))
        .blocking(|mut call: Call<Value>| {
            begin(&mut call)?.run_blocking(endless())?;
            Ok::<_, WorkerError>(json!({}))
        })
        .unwrap()
}

async fn start(stream: &mut WorkerStream, function: &str, timeout_ms: i64) {
    let request = v1::TaskExecutionRequest {
        run_id: "r".into(),
        function_name: function.into(),
        input_payload: pack(&json!({"model": "acme/count-up"})).into(),
        timeout_ms,
        ..Default::default()
    };
    stream.send(Msg::RunRequest(request)).await;
    let at_work =
        |msg| matches!(msg, Msg::WorkerEvent(event) if event.event_type == "job.progress").then_some(());
    stream.wait_for("the function to be at work", at_work).await;
}

/// The run has this end, and its inference too: a model's threads have ended before it counts as unloaded.
async fn ends_as(stream: &mut WorkerStream, kind: &str) {
    assert_eq!(stream.next_result().await.error_type, kind);
    let unload = v1::UnloadModelCommand { model_id: "acme/count-up".into() };
    let pick = |msg| if let Msg::UnloadModelResult(result) = msg { Some(result) } else { None };
    loop {
        stream.send(Msg::UnloadModelCmd(unload.clone())).await;
        let answer = stream.wait_for("the model to be unloaded", pick).await;
        if answer.success {
            return;
        }
        // The function that was left behind gives its lease back a moment after its run was reported.
        assert_eq!(answer.error_message, "the model is in use by r");
    }
}

#[tokio::test]
async fn a_run_that_is_stopped_ends_its_inference() {
    let scheduler = FakeScheduler::start().await;
    let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
    let models = OrtModels::new(config).unwrap_or_else(|error| panic!("{error}"));
    let ports = Ports {
        model_source: Some(Arc::new(CountUp)),
        model_manager: Some(Arc::new(models)),
        ..Ports::default()
    };
    let builder = Worker::builder(Embedded::settings(&scheduler.addr().to_string()))
        .ports(ports)
        .function(counts())
        .function(counts_and_blocks());
    let worker = Embedded::start(builder);
    let mut stream = scheduler.accept().await;
    for function in ["counts", "counts_and_blocks"] {
        start(&mut stream, function, 0).await;
        let interrupt = v1::InterruptTaskCommand { run_id: "r".into(), ..Default::default() };
        stream.send(Msg::InterruptRunCmd(interrupt)).await;
        ends_as(&mut stream, "canceled").await;
        start(&mut stream, function, 1_000).await;
        ends_as(&mut stream, "timeout").await;
    }
    worker.leave(stream).await;
}
