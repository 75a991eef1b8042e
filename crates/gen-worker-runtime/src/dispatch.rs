//! One match: a command, and who handles it. Nothing here waits, so that no command waits behind another.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use gen_worker_core::{Cancellation, FailureKind, JobFailure, RunId};
use tracing::{debug, info, warn};

use crate::{
    admission::{Applicant, Refusal},
    command::{Command, RunRequest},
    credential::Keeper,
    job::Jobs,
    model_control::ModelControl,
    realtime::Sessions,
    shutdown::Shutdown,
    wire::outbound,
};

/// Where every command goes.
pub(crate) struct Dispatcher {
    jobs: Jobs,
    sessions: Sessions,
    models: ModelControl,
    credential: Keeper,
    shutdown: Shutdown,
    /// The extensions that the scheduler announced last.
    spoken: Mutex<HashSet<String>>,
}

impl Dispatcher {
    pub(crate) fn new(jobs: Jobs, models: ModelControl, credential: Keeper, shutdown: Shutdown) -> Self {
        Self { jobs, sessions: Sessions::default(), models, credential, shutdown, spoken: Mutex::default() }
    }

    pub(crate) fn handle(&self, command: Command) {
        match command {
            Command::Run(request) => self.run(*request),
            Command::RefuseRun { run_id, attempt, problem } => {
                self.refuse(&run_id, attempt, JobFailure::new(FailureKind::Validation, problem));
            }
            Command::Interrupt { run_id, attempt } => {
                info!(%run_id, attempt, "interrupt");
                self.jobs.admission().interrupt(&run_id, attempt);
            }
            Command::LoadModel(model) => self.models.load(model),
            Command::UnloadModel(model) => self.models.unload(model),
            Command::Configure(config) => self.jobs.model_table().configure(config),
            Command::Hello { features } => *self.spoken() = features.into_iter().collect(),
            Command::Acknowledge { run_id, attempt } => self.jobs.outbox().acknowledge(&(run_id, attempt)),
            Command::Drain { deadline, reason } => {
                info!(reason, "the scheduler asked this worker to leave");
                self.shutdown.drain_within(deadline);
            }
            Command::OpenRealtime(opening) => self.sessions.open(&self.jobs, *opening),
            Command::RefuseRealtime { session_id, problem } => {
                warn!(session_id, problem, "session refused");
                self.jobs.outbox().answer(outbound::realtime_closed(session_id, "error:ValidationError"));
            }
            Command::RealtimeFrame { session_id, data, is_text } => {
                self.sessions.hear(&session_id, data, is_text);
            }
            Command::CloseRealtime { session_id } => self.sessions.hang_up(&session_id),
            Command::RefreshToken(token) => self.credential.refresh(token),
            Command::Ignore { what } => debug!(what, "ignored"),
        }
    }

    /// The stream is lost: realtime sessions end with it, runs do not.
    pub(crate) fn stream_lost(&self) {
        self.sessions.lose(self.jobs.outbox());
    }

    fn run(&self, request: RunRequest) {
        let key = (request.run_id.clone(), request.attempt);
        if request.attempt != 0 && self.jobs.outbox().resend(&key) {
            info!(run_id = %key.0, attempt = key.1, "this attempt has finished: its result is sent again");
            return;
        }
        let function =
            self.jobs.function(&request.function).filter(|function| !function.spec().is_realtime()).cloned();
        let applicant = Applicant {
            run_id: &request.run_id,
            attempt: request.attempt,
            function: &request.function,
            spec: function.as_ref().map(|function| &**function.spec()),
            payload_bytes: request.payload.len(),
        };
        let cancellation = Cancellation::new();
        match (self.jobs.admission().admit(&applicant, &cancellation), function) {
            (Ok(permit), Some(function)) => {
                self.jobs.outbox().forget(&key);
                self.accepted(&key.0, key.1);
                self.jobs.start(function, request, cancellation, permit);
            }
            (Err(Refusal::Failed(failure)), _) => self.refuse(&key.0, key.1, failure),
            (Err(Refusal::AlreadyRunning), _) => {
                info!(run_id = %key.0, attempt = key.1, "already running");
                self.accepted(&key.0, key.1);
            }
            (Err(Refusal::Stale), _) => info!(run_id = %key.0, attempt = key.1, "a newer attempt is running"),
            (Ok(_), None) => unreachable!("only known functions are admitted"),
        }
    }

    fn refuse(&self, run_id: &RunId, attempt: i64, failure: JobFailure) {
        warn!(%run_id, attempt, kind = failure.kind.as_str(), reason = failure.error_message(), "run refused");
        let message = outbound::result(run_id, attempt, &Err(failure));
        self.jobs.outbox().result((run_id.clone(), attempt), message);
    }

    /// Whether the scheduler says when it has a result for good.
    /// What the scheduler of an earlier stream announced says nothing about this one's.
    pub(crate) fn new_stream(&self) {
        self.spoken().clear();
    }

    pub(crate) fn acknowledges(&self) -> bool {
        self.spoken().contains("result-ack")
    }

    fn accepted(&self, run_id: &RunId, attempt: i64) {
        if self.spoken().contains("run-accepted") {
            self.jobs.outbox().answer(outbound::accepted(run_id, attempt));
        }
    }

    fn spoken(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.spoken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
