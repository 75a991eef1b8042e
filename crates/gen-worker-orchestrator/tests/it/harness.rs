//! One orchestrator, workers that say what the test tells them to, and callers.

use std::time::Duration;

use bytes::Bytes;
use gen_worker_core::{OutputBody, Secret};
use gen_worker_net::{
    AllowList, HeaderName, HeaderValue, HttpClient, HttpResponse, Method, NetConfig, Trust,
};
use gen_worker_orchestrator::{Orchestrator, OrchestratorClient, OrchestratorConfig, RunSubmission};
use gen_worker_proto::scheduler::{
    self as v1, scheduler_worker_service_client::SchedulerWorkerServiceClient, worker_scheduler_message::Msg,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, transport::Channel};

/// No step takes this long unless it never happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) const ALL: [&str; 5] = ["result-ack", "run-accepted", "attempt", "active-runs", "drain"];

pub(crate) struct Harness {
    pub(crate) orchestrator: Orchestrator,
    pub(crate) client: OrchestratorClient,
    pub(crate) folder: TempDir,
    http: HttpClient,
}

impl Harness {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut OrchestratorConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = OrchestratorConfig::local(folder.path().join("data"));
        change(&mut config);
        Self::start_with(config, folder).await
    }

    /// An orchestrator that keeps its things in this folder.
    pub(crate) async fn start_with(config: OrchestratorConfig, folder: TempDir) -> Self {
        let token = config.api_token.clone();
        Self::of(Orchestrator::start(config).await.unwrap(), token, folder)
    }

    /// Around an orchestrator that runs.
    pub(crate) fn of(orchestrator: Orchestrator, token: Option<Secret<String>>, folder: TempDir) -> Self {
        Self {
            client: OrchestratorClient::new(orchestrator.base_url().clone(), token).unwrap(),
            orchestrator,
            folder,
            http: HttpClient::new(NetConfig {
                connect_timeout: PATIENCE,
                idle_timeout: PATIENCE,
                min_rate: 0,
                attempts: 1,
                url_allow: AllowList::default(),
            })
            .unwrap(),
        }
    }

    /// Sends a request to a path, or to a whole URL.
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> impl Future<Output = HttpResponse> + use<> {
        let url = self.orchestrator.base_url().join(path).unwrap();
        let mut request = self.http.request(method, url, Trust::Operator);
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).unwrap();
            request = request.header(HeaderName::from_static(name), value);
        }
        if !body.is_empty() {
            request = request.body(OutputBody::Bytes(Bytes::copy_from_slice(body)));
        }
        async { request.send().await.unwrap() }
    }

    /// A connection to the gRPC side.
    pub(crate) async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.orchestrator.grpc_addr());
        Channel::from_shared(address).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn submit(&self, function: &str, tenant_id: Option<&str>) -> String {
        let submission = RunSubmission {
            function: function.to_owned(),
            tenant_id: tenant_id.map(str::to_owned),
            ..Default::default()
        };
        self.client.submit(&submission).await.unwrap()
    }

    pub(crate) async fn worker(&self, features: &[&str], max_concurrency: i32) -> Worker {
        let registration = registration(features, max_concurrency, Vec::new());
        Worker::connect(self, registration, None).await.unwrap()
    }
}

pub(crate) fn registration(
    features: &[&str],
    max_concurrency: i32,
    active_runs: Vec<v1::ActiveRun>,
) -> v1::WorkerRegistration {
    v1::WorkerRegistration {
        resources: Some(v1::WorkerResources {
            worker_id: "w".to_owned(),
            available_functions: vec!["f".to_owned()],
            max_concurrency,
            features: features.iter().map(|&feature| feature.to_owned()).collect(),
            ..Default::default()
        }),
        is_heartbeat: false,
        active_runs,
    }
}

/// A worker's end of the stream. Dropping it breaks the stream.
pub(crate) struct Worker {
    outbound: mpsc::Sender<v1::WorkerSchedulerMessage>,
    pub(crate) inbound: Streaming<v1::WorkerSchedulerMessage>,
}

impl Worker {
    pub(crate) async fn connect(
        harness: &Harness,
        registration: v1::WorkerRegistration,
        token: Option<&Secret<String>>,
    ) -> Result<Self, Status> {
        let mut client = SchedulerWorkerServiceClient::new(harness.channel().await);
        let (outbound, messages) = mpsc::channel(16);
        let worker_registration = Msg::WorkerRegistration(registration);
        outbound.send(message(worker_registration)).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = token {
            let bearer = format!("Bearer {}", token.expose()).parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        let inbound = client.connect_worker(request).await?.into_inner();
        Ok(Self { outbound, inbound })
    }

    pub(crate) async fn say(&self, msg: Msg) {
        self.outbound.send(message(msg)).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Msg {
        let message = timeout(PATIENCE, self.inbound.message()).await.unwrap();
        message.unwrap().unwrap().msg.unwrap()
    }

    /// The next run, whatever comes before it.
    pub(crate) async fn run(&mut self) -> v1::TaskExecutionRequest {
        loop {
            if let Msg::RunRequest(request) = self.next().await {
                return request;
            }
        }
    }

    /// Admits a run and reports how it ended: `Ok` with the output, `Err` with the kind of failure.
    pub(crate) async fn answer(&self, request: &v1::TaskExecutionRequest, outcome: Result<Value, &str>) {
        self.say(Msg::RunAccepted(v1::RunAccepted {
            run_id: request.run_id.clone(),
            attempt: request.attempt,
        }))
        .await;
        let output = outcome.as_ref().map(|value| rmp_serde::to_vec(value).unwrap());
        self.say(Msg::RunResult(v1::TaskExecutionResult {
            run_id: request.run_id.clone(),
            success: outcome.is_ok(),
            output_payload: output.unwrap_or_default().into(),
            error_type: outcome.as_ref().err().copied().unwrap_or_default().to_owned(),
            retryable: outcome == Err("retryable"),
            attempt: request.attempt,
            ..Default::default()
        }))
        .await;
    }

    pub(crate) async fn event(&self, run_id: &str, event_type: &str, payload: &'static str) {
        self.say(Msg::WorkerEvent(v1::WorkerEvent {
            run_id: run_id.to_owned(),
            event_type: event_type.to_owned(),
            payload_json: payload.into(),
        }))
        .await;
    }
}

fn message(msg: Msg) -> v1::WorkerSchedulerMessage {
    v1::WorkerSchedulerMessage { msg: Some(msg) }
}
