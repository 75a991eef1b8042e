//! A worker that says what the test tells it to, with names and outputs that no honest worker has.

use std::time::Duration;

use gen_worker_proto::scheduler::{
    self as v1, scheduler_worker_service_client::SchedulerWorkerServiceClient, worker_scheduler_message::Msg,
};
use gen_worker_tests::pack;
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// No step takes this long unless it never happens.
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker's end of the stream. Dropping it breaks the stream.
pub(super) struct Scripted {
    outbound: mpsc::Sender<v1::WorkerSchedulerMessage>,
    inbound: Streaming<v1::WorkerSchedulerMessage>,
}

impl Scripted {
    /// Connects a worker of this name with one function.
    pub(super) async fn connect(address: String, worker_id: &str, function: &str, schema: &Value) -> Self {
        let channel = Channel::from_shared(address).unwrap().connect().await.unwrap();
        let mut client = SchedulerWorkerServiceClient::new(channel);
        let (outbound, messages) = mpsc::channel(64);
        let registration = Msg::WorkerRegistration(v1::WorkerRegistration {
            resources: Some(v1::WorkerResources {
                worker_id: worker_id.to_owned(),
                available_functions: vec![function.to_owned()],
                function_schemas: vec![v1::FunctionSchema {
                    name: function.to_owned(),
                    input_schema_json: schema.to_string().into(),
                    output_schema_json: "{}".into(),
                    ..Default::default()
                }],
                max_concurrency: 1,
                disk_models: vec![worker_id.to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        });
        outbound.send(v1::WorkerSchedulerMessage { msg: Some(registration) }).await.unwrap();
        let inbound = client.connect_worker(ReceiverStream::new(messages)).await.unwrap().into_inner();
        Self { outbound, inbound }
    }

    async fn say(&self, msg: Msg) {
        self.outbound.send(v1::WorkerSchedulerMessage { msg: Some(msg) }).await.unwrap();
    }

    /// The next run that it is given.
    pub(super) async fn run(&mut self) -> v1::TaskExecutionRequest {
        loop {
            let message = timeout(PATIENCE, self.inbound.message()).await.unwrap().unwrap().unwrap();
            if let Some(Msg::RunRequest(request)) = message.msg {
                return request;
            }
        }
    }

    /// Says something about a run; about itself, if the run is empty.
    pub(super) async fn event(&self, run_id: &str, event_type: &str, payload: &Value) {
        self.say(Msg::WorkerEvent(v1::WorkerEvent {
            run_id: run_id.to_owned(),
            event_type: event_type.to_owned(),
            payload_json: payload.to_string().into(),
        }))
        .await;
    }

    /// Reports how a run ended: with an output, or a message of what went wrong.
    pub(super) async fn answer(&self, request: &v1::TaskExecutionRequest, outcome: Result<&Value, &str>) {
        let error = outcome.err().unwrap_or_default().to_owned();
        self.say(Msg::RunResult(v1::TaskExecutionResult {
            run_id: request.run_id.clone(),
            success: outcome.is_ok(),
            output_payload: outcome.ok().map(pack).unwrap_or_default().into(),
            error_type: error.clone(),
            error_message: error.clone(),
            safe_message: error,
            attempt: request.attempt,
            ..Default::default()
        }))
        .await;
    }
}
