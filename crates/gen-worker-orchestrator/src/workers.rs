//! The workers that are connected, as they describe themselves.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::queue::Sender;

/// Events about the worker itself, such as downloads, that are kept for showing.
const MAX_EVENTS: usize = 32;

/// Most models of a worker of which is kept what it said last.
const MAX_MODELS: usize = 256;

/// Largest event about the worker itself that is kept, in bytes.
const MAX_EVENT_BYTES: usize = 16 << 10;

/// Where messages to a worker go.
pub(crate) type Outbound = mpsc::Sender<Result<v1::WorkerSchedulerMessage, Status>>;

/// One stream of one worker.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) resources: v1::WorkerResources,
    pub(crate) draining: bool,
    outbound: Outbound,
    closing: CancellationToken,
    last_seen: Instant,
    events: VecDeque<(String, Value)>,
    models: BTreeMap<String, Model>,
}

/// What a worker said last of one model.
#[derive(Debug, Default)]
struct Model {
    /// Of its way into memory: `model.state`.
    state: Option<Value>,
    /// Of its way to the disk: `model.download`.
    download: Option<Value>,
}

impl Session {
    pub(crate) fn new(
        id: u64,
        resources: v1::WorkerResources,
        outbound: Outbound,
        closing: CancellationToken,
    ) -> Self {
        Self {
            id,
            resources,
            draining: false,
            outbound,
            closing,
            last_seen: Instant::now(),
            events: VecDeque::new(),
            models: BTreeMap::new(),
        }
    }

    /// Whether the worker speaks an extension.
    pub(crate) fn speaks(&self, feature: &str) -> bool {
        self.resources.features.iter().any(|f| f == feature)
    }

    pub(crate) fn sender(&self) -> Sender<'_> {
        Sender { session: self.id, worker_id: &self.resources.worker_id }
    }

    /// Queues a message. A worker that reads so slowly that its queue is full is disconnected: it comes back and says
    /// where it stands.
    pub(crate) fn send(&self, msg: Msg) {
        let message = v1::WorkerSchedulerMessage { msg: Some(msg) };
        if self.outbound.try_send(Ok(message)).is_err() {
            self.closing.cancel();
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.closing.is_cancelled()
    }

    pub(crate) fn seen(&mut self, now: Instant) {
        self.last_seen = now;
    }

    /// Tells the worker to finish and leave; false: it does not know how.
    pub(crate) fn drain(&mut self, deadline: Duration) -> bool {
        if !self.speaks("drain") {
            return false;
        }
        self.draining = true;
        self.send(Msg::DrainCmd(v1::DrainCommand {
            deadline_ms: i64::try_from(deadline.as_millis()).unwrap_or(i64::MAX),
            reason: "asked for by an operator".to_owned(),
        }));
        true
    }

    /// Keeps an event about the worker itself.
    pub(crate) fn remember(&mut self, event: v1::WorkerEvent) {
        let small = event.event_type.len() + event.payload_json.len() <= MAX_EVENT_BYTES;
        let payload = serde_json::from_slice(&event.payload_json).ok();
        if let Some(payload) = payload.filter(|_| small) {
            self.remember_model(&event.event_type, &payload);
            self.events.truncate(MAX_EVENTS - 1);
            self.events.push_front((event.event_type, payload));
        }
    }

    fn remember_model(&mut self, event_type: &str, payload: &Value) {
        let Some(model_id) = payload["model_id"].as_str() else { return };
        if self.models.len() >= MAX_MODELS && !self.models.contains_key(model_id) {
            return;
        }
        let slot: fn(&mut Model) -> &mut Option<Value> = match event_type {
            "model.state" => |model| &mut model.state,
            "model.download" => |model| &mut model.download,
            _ => return,
        };
        *slot(self.models.entry(model_id.to_owned()).or_default()) = Some(payload.clone());
    }

    /// The worker as the API shows it.
    pub(crate) fn view(&self, running: usize, now: Instant) -> Value {
        let of = &self.resources;
        let events = self.events.iter();
        json!({
            "session": self.id,
            "worker_id": of.worker_id,
            "deployment_id": of.deployment_id,
            "features": of.features,
            "draining": self.draining,
            "functions": self.functions(),
            "max_concurrency": of.max_concurrency,
            "function_concurrency": of.function_concurrency,
            "running": running,
            "cpu_cores": of.cpu_cores,
            "memory_bytes": of.memory_bytes,
            "models_in_memory": of.vram_models,
            "models_on_disk": of.disk_models,
            "gpu": {
                "count": of.gpu_count,
                "name": of.gpu_name,
                "memory_bytes": of.gpu_memory_bytes,
                "memory_used_bytes": of.gpu_memory_used_bytes,
            },
            "models": self.models(),
            "versions": {
                "onnxruntime": of.onnxruntime_version,
                "cuda": of.cuda_version,
                "gpu_driver": of.gpu_driver,
            },
            "last_heartbeat_ms": now.saturating_duration_since(self.last_seen).as_millis() as u64,
            "events": events.map(|(name, payload)| json!({"event": name, "payload": payload})).collect::<Value>(),
        })
    }

    fn models(&self) -> Value {
        let view = |(model_id, model): (&String, &Model)| {
            let of = |key: &str| model.state.as_ref().map(|state| state[key].clone());
            json!({"model_id": model_id, "state": of("state"), "bytes": of("bytes"), "download": model.download})
        };
        self.models.iter().map(view).collect()
    }

    fn functions(&self) -> Value {
        let of = &self.resources;
        let functions = of.available_functions.iter().map(|name| (name, true));
        let loading = of.loading_functions.iter().map(|name| (name, false));
        functions
            .chain(loading)
            .map(|(name, ready)| {
                let schema = of.function_schemas.iter().find(|schema| &schema.name == name);
                let part = |bytes: fn(&v1::FunctionSchema) -> &[u8]| -> Value {
                    schema.and_then(|schema| serde_json::from_slice(bytes(schema)).ok()).unwrap_or_default()
                };
                json!({
                    "name": name,
                    "ready": ready,
                    "input_schema": part(|s| &s.input_schema_json),
                    "output_schema": part(|s| &s.output_schema_json),
                    "injections": part(|s| &s.injection_json),
                    "incremental": schema.is_some_and(|s| s.incremental_output),
                })
            })
            .collect()
    }
}
