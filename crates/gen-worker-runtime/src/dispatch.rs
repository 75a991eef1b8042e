//! One match: a command, and who handles it. Nothing here waits, so that no command waits behind another.

use std::sync::atomic::{AtomicBool, Ordering};

use gen_worker_core::{FailureKind, JobFailure, RunId};
use tracing::{debug, info, warn};

use crate::{
    admission::{Refusal, unknown_function},
    command::{Command, ModelConfig, RunRequest},
    credential::Keeper,
    job::Jobs,
    model_control::ModelControl,
    outbox::Key,
    prefetch::Prefetch,
    realtime::Sessions,
    shutdown::Shutdown,
    wire::outbound,
};

/// Where every command goes.
pub(crate) struct Dispatcher {
    jobs: Jobs,
    sessions: Sessions,
    models: ModelControl,
    prefetch: Prefetch,
    credential: Keeper,
    shutdown: Shutdown,
    /// The scheduler of this stream wants to hear that a run was admitted.
    tell_accepted: AtomicBool,
    /// It wants to hear soon how models come and go.
    tell_model_memory: AtomicBool,
}

impl Dispatcher {
    pub(crate) fn new(
        jobs: Jobs,
        models: ModelControl,
        prefetch: Prefetch,
        credential: Keeper,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            jobs,
            sessions: Sessions::default(),
            models,
            prefetch,
            credential,
            shutdown,
            tell_accepted: AtomicBool::new(false),
            tell_model_memory: AtomicBool::new(false),
        }
    }

    pub(crate) fn handle(&self, command: Command) {
        match command {
            Command::Run(request) => self.run(*request),
            Command::RefuseRun { run_id, attempt, problem } => {
                let key = (run_id, attempt);
                if !self.is_answered(&key) {
                    self.refuse(&key.0, attempt, JobFailure::new(FailureKind::Validation, problem));
                }
            }
            Command::Interrupt { run_id, attempt } => {
                info!(%run_id, attempt, "interrupt");
                self.jobs.admission().interrupt(&run_id, attempt);
            }
            Command::LoadModel(model) => self.models.load(model),
            Command::UnloadModel(model) => self.models.unload(model),
            Command::Configure(config) => self.configure(config, true),
            Command::Hello { features } => self.greeted(&features),
            Command::Acknowledge { run_id, attempt } => self.jobs.outbox().acknowledge(&(run_id, attempt)),
            Command::Drain { deadline, reason } => {
                info!(reason, "the scheduler asked this worker to leave");
                self.shutdown.drain_within(deadline);
            }
            Command::OpenRealtime(opening) => self.sessions.open(&self.jobs, *opening),
            Command::RefuseRealtime { session_id, problem } => {
                warn!(session_id, problem, "session refused");
                let id = RunId::parse(session_id.as_str());
                if !id.is_ok_and(|id| self.sessions.have(&self.jobs, &id)) {
                    let refusal = outbound::realtime_closed(session_id, "error:ValidationError");
                    self.jobs.outbox().frame(refusal, None);
                }
            }
            Command::RealtimeFrame { session_id, data, is_text } => {
                self.sessions.hear(&session_id, data, is_text);
            }
            Command::CloseRealtime { session_id } => self.sessions.hang_up(&session_id),
            Command::RefreshToken(token) => self.credential.refresh(token),
            Command::Ignore { what } => debug!(what, "ignored"),
        }
    }

    /// Takes the deployment's models in the place of those configured before; `fetch_ahead`: and begins to fetch them.
    pub(crate) fn configure(&self, config: ModelConfig, fetch_ahead: bool) {
        if fetch_ahead {
            self.prefetch.take_up(&config);
        }
        self.jobs.model_table().configure(config);
    }

    /// The stream is lost: realtime sessions end with it, runs do not.
    pub(crate) fn stream_lost(&self) {
        self.sessions.lose(self.jobs.outbox());
    }

    fn run(&self, request: RunRequest) {
        let key = (request.run_id.clone(), request.attempt);
        if self.is_answered(&key) {
            return;
        }
        let known = self.jobs.function(&request.function).filter(|function| !function.spec().is_realtime());
        let Some(function) = known.cloned() else {
            return self.refuse(&key.0, key.1, unknown_function(&request.function));
        };
        match self.jobs.start(function, request) {
            Ok(()) => self.accepted(&key.0, key.1),
            Err(Refusal::Failed(failure)) => self.refuse(&key.0, key.1, failure),
            Err(Refusal::AlreadyRunning) => {
                info!(run_id = %key.0, attempt = key.1, "already running");
                self.accepted(&key.0, key.1);
            }
            Err(Refusal::Finished) => self.send_again(&key),
            Err(Refusal::Stale) => info!(run_id = %key.0, attempt = key.1, "a newer attempt is running"),
        }
    }

    /// Whether the run has a result, which is sent again.
    fn is_answered(&self, key: &Key) -> bool {
        let has_result = self.jobs.outbox().has_result_of(key);
        if has_result {
            self.send_again(key);
        }
        has_result
    }

    fn send_again(&self, key: &Key) {
        info!(run_id = %key.0, attempt = key.1, "this attempt has finished: its result is sent again");
        self.jobs.outbox().resend(key);
    }

    /// A run that is running will have its result: whatever is wrong with what was sent again, it is not refused beside it.
    fn refuse(&self, run_id: &RunId, attempt: i64, failure: JobFailure) {
        if self.jobs.admission().is_running(run_id, attempt) {
            return warn!(%run_id, attempt, reason = failure.error_message(), "already running, and sent again otherwise");
        }
        warn!(%run_id, attempt, kind = failure.kind.as_str(), reason = failure.error_message(), "run refused");
        self.jobs.meters().refused(failure.kind);
        let may_come_again = failure.kind == FailureKind::Retryable;
        let message = outbound::result(run_id, attempt, &Err(failure));
        self.jobs.outbox().refusal((run_id.clone(), attempt), message, may_come_again);
    }

    /// What the scheduler of an earlier stream announced says nothing about this one's.
    pub(crate) fn new_stream(&self) {
        self.tell_accepted.store(false, Ordering::Relaxed);
        self.tell_model_memory.store(false, Ordering::Relaxed);
    }

    fn greeted(&self, features: &[String]) {
        let speaks = |feature: &str| features.iter().any(|spoken| spoken == feature);
        self.tell_accepted.store(speaks("run-accepted"), Ordering::Relaxed);
        self.tell_model_memory.store(speaks("model-memory"), Ordering::Relaxed);
        if speaks("result-ack") {
            self.jobs.outbox().await_acknowledgements();
        }
    }

    /// Whether the scheduler of this stream does not wait for the next heartbeat to hear how models come and go.
    pub(crate) fn tells_model_memory(&self) -> bool {
        self.tell_model_memory.load(Ordering::Relaxed)
    }

    fn accepted(&self, run_id: &RunId, attempt: i64) {
        if self.tell_accepted.load(Ordering::Relaxed) {
            self.jobs.outbox().answer(outbound::accepted(run_id, attempt));
        }
    }
}
