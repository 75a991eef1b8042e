//! The workers that are connected, as they describe themselves.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{
    Stream, StreamExt,
    stream::{PollNext, select_with_strategy},
};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    dispatch::Load,
    pipe::{PipeSender, pipe},
    queue::FileScope,
    realtime::{self, Conversation, Heard, Line, Opening},
};

/// Events about the worker itself, such as downloads, that are kept for showing.
const MAX_EVENTS: usize = 32;

/// Most models of a worker of which is kept what it said last.
const MAX_MODELS: usize = 256;

/// Largest event about the worker itself that is kept, in bytes.
const MAX_EVENT_BYTES: usize = 16 << 10;

/// Messages queued for one worker. A worker is given far fewer runs than this; interrupts and acknowledgements are small.
const OUTBOUND: usize = 1024;

/// Where messages to a worker go. What belongs to realtime sessions waits apart, and lets everything else overtake it.
#[derive(Debug, Clone)]
pub(crate) struct Outbound {
    pub(crate) messages: mpsc::Sender<Result<v1::WorkerSchedulerMessage, Status>>,
    frames: PipeSender<v1::WorkerSchedulerMessage>,
}

impl Outbound {
    /// One, and what comes out of it.
    pub(crate) fn new()
    -> (Self, impl Stream<Item = Result<v1::WorkerSchedulerMessage, Status>> + Send + 'static) {
        let (sender, messages) = mpsc::channel(OUTBOUND);
        let (frames, framed) = pipe(realtime::WAITING);
        let first = |_: &mut ()| PollNext::Left;
        let all = select_with_strategy(ReceiverStream::new(messages), framed.map(Ok), first);
        (Self { messages: sender, frames }, all)
    }
}

/// A run that the worker has.
#[derive(Debug)]
struct Held {
    attempt: i64,
    function: String,
    /// Whether the worker said that it admitted the run.
    accepted: bool,
}

/// One stream of one worker.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) resources: Arc<v1::WorkerResources>,
    draining: bool,
    runs: HashMap<String, Held>,
    /// How many they are, by function: it is asked for whenever something may start.
    running: HashMap<String, usize>,
    /// The realtime sessions, by their ids at the worker.
    conversations: HashMap<String, Conversation>,
    outbound: Outbound,
    closing: CancellationToken,
    /// Where the worker is sent when the stream ends.
    sent_to: Option<String>,
    /// Whether the worker was sent elsewhere a moment ago, and did not go.
    pub(crate) stays: bool,
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

impl Held {
    /// Whether something is about this attempt; 0 is about any.
    fn is_at(&self, attempt: i64) -> bool {
        attempt == 0 || attempt == self.attempt
    }
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
            resources: Arc::new(resources),
            draining: false,
            runs: HashMap::new(),
            running: HashMap::new(),
            conversations: HashMap::new(),
            outbound,
            closing,
            sent_to: None,
            stays: false,
            last_seen: Instant::now(),
            events: VecDeque::new(),
            models: BTreeMap::new(),
        }
    }

    /// Whether the worker speaks an extension.
    pub(crate) fn speaks(&self, feature: &str) -> bool {
        self.resources.features.iter().any(|f| f == feature)
    }

    /// Sends a run that was leased for this worker.
    pub(crate) fn start(&mut self, mut request: v1::TaskExecutionRequest) {
        let held =
            Held { attempt: request.attempt, function: request.function_name.clone(), accepted: false };
        self.hold(request.run_id.clone(), held);
        if !self.speaks("attempt") {
            request.attempt = 0;
        }
        self.send(Msg::RunRequest(request));
    }

    /// Counts a run that the worker has had since before this stream.
    pub(crate) fn adopt(&mut self, active: v1::ActiveRun, function: String) {
        self.hold(active.run_id, Held { attempt: active.attempt, function, accepted: true });
    }

    /// Counts a run no more: another stream has it.
    pub(crate) fn forget(&mut self, run_id: &str) {
        if let Some(gone) = self.runs.remove(run_id)
            && let Some(running) = self.running.get_mut(&gone.function)
        {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&gone.function);
            }
        }
    }

    fn hold(&mut self, run_id: String, held: Held) {
        self.forget(&run_id);
        match self.running.get_mut(&held.function) {
            Some(running) => *running += 1,
            None => drop(self.running.insert(held.function.clone(), 1)),
        }
        self.runs.insert(run_id, held);
    }

    /// Opens a realtime session.
    pub(crate) fn converse(&mut self, opening: Opening, file_base_url: &str) -> (Line, Heard) {
        let (id, conversation, line, heard) =
            realtime::open(opening, file_base_url, self.outbound.frames.clone());
        self.conversations.insert(id, conversation);
        (line, heard)
    }

    /// The realtime sessions that are open.
    pub(crate) fn conversations(&self) -> impl Iterator<Item = &Conversation> {
        self.conversations.values()
    }

    /// A realtime session's handler has said something. What ended meanwhile, or with another stream, is of no interest.
    pub(crate) fn hear(&mut self, frame: v1::RealtimeFrame) {
        let id = frame.session_id.clone();
        if self.conversations.get_mut(&id).is_some_and(|open| !open.hear(frame)) {
            self.send(realtime::close(id));
        }
    }

    /// The worker has closed a realtime session, whose place is free once its handler has ended.
    pub(crate) fn hang_up(&mut self, close: v1::RealtimeCloseCommand) {
        let id = close.session_id;
        if self.conversations.get_mut(&id).is_some_and(|open| open.close(close.reason)) {
            self.conversations.remove(&id);
        }
    }

    /// Whose files a token opens, if it was given to a realtime session here.
    pub(crate) fn file_scope(&self, id: &str, token: &str) -> Option<FileScope> {
        self.conversations.get(id)?.file_scope(id, token)
    }

    /// The worker has admitted a run.
    pub(crate) fn accept(&mut self, accepted: &v1::RunAccepted) {
        if let Some(held) = self.runs.get_mut(&accepted.run_id)
            && held.is_at(accepted.attempt)
        {
            held.accepted = true;
        }
    }

    /// The worker has ended a run. False: it refused it, for it had not admitted it and says when it does.
    pub(crate) fn finish(&mut self, run_id: &str, attempt: i64) -> bool {
        let held = self.runs.get(run_id).filter(|held| held.is_at(attempt));
        let accepted = held.is_none_or(|held| held.accepted) || !self.speaks("run-accepted");
        if held.is_some() {
            self.forget(run_id);
        }
        accepted
    }

    /// Whether the worker has a run; 0: at any attempt.
    pub(crate) fn has(&self, run_id: &str, attempt: i64) -> bool {
        self.runs.get(run_id).is_some_and(|held| held.is_at(attempt))
    }

    /// The runs that the worker has, with their attempts.
    pub(crate) fn into_runs(self) -> Vec<(String, i64)> {
        self.runs.into_iter().map(|(run_id, held)| (run_id, held.attempt)).collect()
    }

    /// Whether the worker is to be given runs.
    pub(crate) fn takes_runs(&self) -> bool {
        !self.draining && !self.closing.is_cancelled()
    }

    /// What the worker has to do.
    pub(crate) fn load(&self) -> Load {
        let mut running = self.running.clone();
        for open in self.conversations() {
            *running.entry(open.function.clone()).or_default() += 1;
        }
        Load { session: self.id, resources: Arc::clone(&self.resources), running }
    }

    /// Ends the stream: the worker comes back and says where it stands.
    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// Ends the stream, and sends the worker to another orchestrator.
    pub(crate) fn send_on(&mut self, address: String) {
        self.sent_to = Some(address);
        self.close();
    }

    /// Where the worker is sent; `None`: nowhere in particular.
    pub(crate) fn sent_to(&self) -> Option<&str> {
        self.sent_to.as_deref()
    }

    /// How many runs a worker would take along that goes elsewhere; `None`: it would lose them, does not go, or leaves anyway.
    pub(crate) fn takes_along(&self) -> Option<usize> {
        let loses = !self.conversations.is_empty() || !(self.runs.is_empty() || self.speaks("active-runs"));
        let can = self.takes_runs() && !self.stays && !loses;
        can.then_some(self.runs.len())
    }

    /// Queues a message. A worker that reads so slowly that its queue is full is disconnected: it comes back and says
    /// where it stands.
    pub(crate) fn send(&self, msg: Msg) {
        let message = v1::WorkerSchedulerMessage { msg: Some(msg) };
        if self.outbound.messages.try_send(Ok(message)).is_err() {
            self.close();
        }
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
    pub(crate) fn view(&self, now: Instant) -> Value {
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
            "running": self.runs.len(),
            "realtime_sessions": self.conversations.len(),
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
            "model_memory": of.model_memory.map(|memory| json!({
                "used_bytes": memory.used_bytes,
                "budget_bytes": memory.budget_bytes,
                "hits": memory.hits,
                "misses": memory.misses,
                "loads": memory.loads,
                "evictions": memory.evictions,
            })),
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
