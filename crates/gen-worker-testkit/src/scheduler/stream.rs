//! One worker's stream, in the hands of the test.

use std::fmt;

use gen_worker_proto::scheduler::{
    ResultAck, SchedulerHello, TaskExecutionRequest, TaskExecutionResult, WorkerEvent, WorkerRegistration,
    WorkerSchedulerMessage, worker_scheduler_message::Msg,
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::{PATIENCE, connection::KillSwitch};

/// A stream that a worker opened. Dropping it ends the stream as a scheduler that leaves in peace does.
pub struct WorkerStream {
    metadata: MetadataMap,
    inbound: Streaming<WorkerSchedulerMessage>,
    outbound: Option<mpsc::Sender<Result<WorkerSchedulerMessage, Status>>>,
    connection: KillSwitch,
    seen: Vec<WorkerSchedulerMessage>,
}

impl fmt::Debug for WorkerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WorkerStream({})", self.history())
    }
}

impl WorkerStream {
    pub(super) fn new(
        metadata: MetadataMap,
        inbound: Streaming<WorkerSchedulerMessage>,
        outbound: mpsc::Sender<Result<WorkerSchedulerMessage, Status>>,
        connection: KillSwitch,
    ) -> Self {
        Self { metadata, inbound, outbound: Some(outbound), connection, seen: Vec::new() }
    }

    /// What came with the call.
    pub fn metadata(&self) -> &MetadataMap {
        &self.metadata
    }

    /// The `authorization` entry that came with the call.
    pub fn authorization(&self) -> Option<&str> {
        self.metadata.get("authorization")?.to_str().ok()
    }

    /// Everything received so far, oldest first.
    pub fn seen(&self) -> &[WorkerSchedulerMessage] {
        &self.seen
    }

    /// The next message.
    ///
    /// # Panics
    /// None comes within 30 s, or the stream ends.
    pub async fn recv(&mut self) -> WorkerSchedulerMessage {
        self.next("a message", Instant::now() + PATIENCE).await
    }

    /// The first message from here on from which `pick` makes something. The others are kept in [`seen`](Self::seen).
    ///
    /// # Panics
    /// It does not come within 30 s, whatever else comes, or the stream ends; the panic says that `what` was waited for.
    pub async fn wait_for<T>(&mut self, what: &str, mut pick: impl FnMut(Msg) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(picked) = self.next(what, until).await.msg.and_then(&mut pick) {
                return picked;
            }
        }
    }

    /// The next registration; heartbeats are registrations too.
    ///
    /// # Panics
    /// As [`wait_for`](Self::wait_for).
    pub async fn next_registration(&mut self) -> WorkerRegistration {
        let pick = |msg| match msg {
            Msg::WorkerRegistration(registration) => Some(registration),
            _ => None,
        };
        self.wait_for("a registration", pick).await
    }

    /// The next result, of any run.
    ///
    /// # Panics
    /// As [`wait_for`](Self::wait_for).
    pub async fn next_result(&mut self) -> TaskExecutionResult {
        let pick = |msg| match msg {
            Msg::RunResult(result) => Some(result),
            _ => None,
        };
        self.wait_for("a result", pick).await
    }

    /// The events of a run among what was received so far.
    pub fn events(&self, run_id: &str) -> Vec<WorkerEvent> {
        let event = |message: &WorkerSchedulerMessage| match &message.msg {
            Some(Msg::WorkerEvent(event)) if event.run_id == run_id => Some(event.clone()),
            _ => None,
        };
        self.seen.iter().filter_map(event).collect()
    }

    /// Waits until the worker ends its side, and returns how: `Ok` in peace, the status otherwise.
    ///
    /// # Errors
    /// The worker or the network broke the stream off.
    ///
    /// # Panics
    /// The end does not come within 30 s, whatever else comes.
    pub async fn ended(&mut self) -> Result<(), Status> {
        let until = Instant::now() + PATIENCE;
        loop {
            match timeout_at(until, self.inbound.message()).await {
                Ok(Ok(Some(message))) => self.seen.push(message),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(status)) => return Err(status),
                Err(_) => panic!("the worker kept its stream open for 30 s; {}", self.history()),
            }
        }
    }

    /// Sends a message.
    ///
    /// # Panics
    /// The stream was ended, or the worker does not take the message within 30 s.
    pub async fn send(&mut self, msg: Msg) {
        self.push(Ok(WorkerSchedulerMessage { msg: Some(msg) })).await;
    }

    /// Sends a message of a kind that no worker of this version knows.
    ///
    /// # Panics
    /// As [`send`](Self::send).
    pub async fn send_unknown(&mut self) {
        // What a reader cannot name, it reads as no kind at all; so it reads an empty message.
        self.push(Ok(WorkerSchedulerMessage { msg: None })).await;
    }

    /// Starts a run with this payload, encoded as MessagePack with field names as keys.
    ///
    /// # Panics
    /// The payload has no MessagePack form, or as [`send`](Self::send).
    pub async fn run(&mut self, run_id: &str, function: &str, payload: impl Serialize) {
        let input_payload = rmp_serde::to_vec_named(&payload).expect("the payload serialises").into();
        let request = TaskExecutionRequest {
            run_id: run_id.to_owned(),
            function_name: function.to_owned(),
            input_payload,
            ..TaskExecutionRequest::default()
        };
        self.send(Msg::RunRequest(request)).await;
    }

    /// Announces extensions, such as `result-ack`.
    ///
    /// # Panics
    /// As [`send`](Self::send).
    pub async fn hello(&mut self, features: &[&str]) {
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        self.send(Msg::SchedulerHello(SchedulerHello { features, scheduler_id: "fake".to_owned() })).await;
    }

    /// Says that a result is durable.
    ///
    /// # Panics
    /// As [`send`](Self::send).
    pub async fn ack(&mut self, result: &TaskExecutionResult) {
        self.send(Msg::ResultAck(ResultAck { run_id: result.run_id.clone(), attempt: result.attempt })).await;
    }

    /// Ends the stream in peace. What the worker still sends can be received.
    pub fn end_ok(&mut self) {
        self.outbound = None;
    }

    /// Ends the stream with this status.
    ///
    /// # Panics
    /// As [`send`](Self::send).
    pub async fn fail(&mut self, status: Status) {
        self.push(Err(status)).await;
        self.outbound = None;
    }

    /// Resets the connection that the stream runs on.
    pub fn drop_connection(&self) {
        self.connection.kill();
    }

    async fn push(&mut self, item: Result<WorkerSchedulerMessage, Status>) {
        let outbound = self.outbound.as_ref().expect("the test has not ended the stream");
        let sent =
            timeout(PATIENCE, outbound.send(item)).await.expect("the worker takes messages within 30 s");
        sent.unwrap_or_else(|_| panic!("the worker is gone; {}", self.history()));
    }

    async fn next(&mut self, what: &str, until: Instant) -> WorkerSchedulerMessage {
        match timeout_at(until, self.inbound.message()).await {
            Ok(Ok(Some(message))) => {
                self.seen.push(message.clone());
                message
            }
            Ok(Ok(None)) => panic!("the worker ended its stream before {what} came; {}", self.history()),
            Ok(Err(status)) => {
                panic!("the stream broke off before {what} came: {status}; {}", self.history())
            }
            Err(_) => panic!("{what} did not come within 30 s; {}", self.history()),
        }
    }

    /// What was received, for the message of a panic.
    fn history(&self) -> String {
        let kinds: Vec<_> =
            self.seen.iter().map(|message| message.msg.as_ref().map_or("unknown", kind)).collect();
        format!("received {}: {}", kinds.len(), kinds.join(", "))
    }
}

fn kind(msg: &Msg) -> &'static str {
    match msg {
        Msg::WorkerRegistration(registration) if registration.is_heartbeat => "heartbeat",
        Msg::WorkerRegistration(_) => "registration",
        Msg::RunResult(_) => "result",
        Msg::WorkerEvent(_) => "event",
        Msg::RunAccepted(_) => "accepted",
        Msg::LoadModelResult(_) => "load result",
        Msg::UnloadModelResult(_) => "unload result",
        _ => "other",
    }
}
