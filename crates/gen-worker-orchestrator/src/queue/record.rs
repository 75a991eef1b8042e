//! One run, as every engine keeps it, and what may become of it: pure functions, which no engine decides for itself.
//!
//! An attempt is a fence. A result counts if its attempt is the one that runs; a worker that does not count attempts
//! (0) is believed if the run is with it. Giving a run back to the queue raises its attempt, so that whatever the old
//! one still says is stale.

use std::time::Duration;

use bytes::Bytes;
use gen_worker_core::json_of;
use gen_worker_proto::scheduler as v1;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{FileScope, Refusal};
use crate::{
    auth::{random_token, same},
    run::{RunError, RunRequest, RunState, RunView},
};

/// How often workers may refuse a run before a refusal counts as a failure.
const MAX_REFUSALS: u32 = 100;

/// How long a refused run waits.
const REFUSED_WAIT: Duration = Duration::from_millis(100);

/// How long a run's file token is good after its end: uploads that were under way still finish.
const TOKEN_LINGERS: Duration = Duration::from_secs(300);

/// Stands between a run's id and the secret in its file token; no id has it.
pub(crate) const TOKEN_SEPARATOR: char = '~';

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Standing {
    Queued,
    Running,
    Ended { state: RunState, at_ms: u64, error: Option<RunError> },
}

/// A run, but for its payload and its output, which are kept beside it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) run_id: String,
    pub(crate) request: RunRequest,
    /// Tells the request from another under the same id.
    digest: String,
    pub(crate) standing: Standing,
    /// The attempt that runs or is next, from 1.
    pub(crate) attempt: i64,
    failures: u32,
    refusals: u32,
    pub(crate) cancel_requested: bool,
    worker: Option<String>,
    /// Opens the run's files.
    file_secret: String,
    pub(crate) created_ms: u64,
    started_ms: Option<u64>,
}

/// What a report does to a run.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Nothing: it is about an attempt that no longer counts.
    Stale,
    /// The run waits for another attempt; if one has failed, this is what is said of it.
    Again { after: Duration, failed: Option<Value> },
    /// The run has ended, with this output.
    Ended { output: Bytes },
}

impl Record {
    pub(crate) fn new(run_id: &str, request: RunRequest, now_ms: u64) -> Self {
        Self {
            run_id: run_id.to_owned(),
            digest: request.digest().to_string(),
            request,
            standing: Standing::Queued,
            attempt: 1,
            failures: 0,
            refusals: 0,
            cancel_requested: false,
            worker: None,
            file_secret: random_token(),
            created_ms: now_ms,
            started_ms: None,
        }
    }

    /// Of the request that the run was made of.
    #[cfg(feature = "nats")]
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether `request` may be taken for the one that the run was made of.
    pub(crate) fn is_made_of(&self, request: &RunRequest) -> Result<(), Refusal> {
        if self.digest == request.digest().to_string() { Ok(()) } else { Err(Refusal::Conflict) }
    }

    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.standing, Standing::Ended { .. })
    }

    /// Whether the run is in the hands of a worker, at this attempt.
    pub(crate) fn is_with(&self, attempt: i64, worker_id: &str) -> bool {
        let same = match attempt {
            0 => self.worker.as_deref() == Some(worker_id),
            attempt => attempt == self.attempt,
        };
        self.standing == Standing::Running && same
    }

    /// Gives the run to a worker, and returns what is said of it.
    pub(crate) fn start(&mut self, worker_id: &str, now_ms: u64) -> Value {
        self.standing = Standing::Running;
        self.worker = Some(worker_id.to_owned());
        self.started_ms = Some(now_ms);
        json!({"attempt": self.attempt, "worker": worker_id})
    }

    /// Takes a worker's word that it still has the run; false if it is not its any more.
    pub(crate) fn adopt(&mut self, attempt: i64, worker_id: &str) -> bool {
        let its = !self.cancel_requested && self.is_with(attempt, worker_id);
        if its {
            self.worker = Some(worker_id.to_owned());
        }
        its
    }

    /// Takes a result. `accepted`: the worker had admitted the run, or does not say when it does; a failure before
    /// that is a refusal.
    pub(crate) fn settle(
        &mut self,
        result: v1::TaskExecutionResult,
        worker_id: &str,
        accepted: bool,
        now_ms: u64,
    ) -> Verdict {
        if !self.is_with(result.attempt, worker_id) {
            return Verdict::Stale;
        }
        if result.success {
            return self.end(RunState::Succeeded, None, result.output_payload, now_ms);
        }
        let error = RunError::from(&result);
        if !accepted && error.retryable && !self.cancel_requested && self.refusals < MAX_REFUSALS {
            self.refusals += 1;
            return self.again(REFUSED_WAIT, None);
        }
        self.fail(error, now_ms)
    }

    /// The worker that has the run is given up.
    pub(crate) fn lose(&mut self, now_ms: u64) -> Verdict {
        let error = RunError::new("retryable", "the worker was lost", true);
        self.fail(error, now_ms)
    }

    /// Asks for the run's end; `Ended` says that it has ended by this.
    pub(crate) fn cancel(&mut self, now_ms: u64) -> Verdict {
        match self.standing {
            Standing::Queued => self.end_canceled(now_ms),
            Standing::Running => {
                self.cancel_requested = true;
                Verdict::Stale
            }
            Standing::Ended { .. } => Verdict::Stale,
        }
    }

    /// Ends an attempt badly: another follows, or the run ends.
    fn fail(&mut self, error: RunError, now_ms: u64) -> Verdict {
        self.failures += 1;
        let retry = &self.request.retry;
        if error.kind == "canceled" || (self.cancel_requested && error.retryable) {
            self.end_canceled(now_ms)
        } else if retry.allows(&error, self.failures) {
            let delay = retry.delay(self.failures);
            let failed =
                json!({"attempt": self.attempt, "error": error, "retry_in_ms": delay.as_millis() as u64});
            self.again(delay, Some(failed))
        } else {
            self.end(RunState::Failed, Some(error), Bytes::new(), now_ms)
        }
    }

    fn again(&mut self, after: Duration, failed: Option<Value>) -> Verdict {
        self.attempt += 1;
        self.standing = Standing::Queued;
        Verdict::Again { after, failed }
    }

    fn end_canceled(&mut self, now_ms: u64) -> Verdict {
        let error = RunError::new("canceled", "canceled", false);
        self.end(RunState::Canceled, Some(error), Bytes::new(), now_ms)
    }

    fn end(&mut self, state: RunState, error: Option<RunError>, output: Bytes, now_ms: u64) -> Verdict {
        self.standing = Standing::Ended { state, at_ms: now_ms, error };
        Verdict::Ended { output }
    }

    /// What is sent to the worker, but for the address of the file API.
    pub(crate) fn to_request(&self, payload: Bytes) -> v1::TaskExecutionRequest {
        let timeout = self.request.timeout.unwrap_or_default().as_millis();
        let (traceparent, tracestate) =
            self.request.trace.clone().map(|trace| (trace.parent, trace.state)).unwrap_or_default();
        v1::TaskExecutionRequest {
            run_id: self.run_id.clone(),
            function_name: self.request.function.clone(),
            input_payload: payload,
            required_models: self.request.models.clone(),
            timeout_ms: i64::try_from(timeout).unwrap_or(i64::MAX),
            tenant_id: self.request.tenant_id.clone().unwrap_or_default(),
            user_id: self.request.user_id.clone().unwrap_or_default(),
            file_base_url: String::new(),
            file_token: format!("{}{TOKEN_SEPARATOR}{}", self.run_id, self.file_secret),
            attempt: self.attempt,
            traceparent,
            tracestate,
        }
    }

    /// The run that a file token says it is of; `None`: of none.
    pub(crate) fn run_of_token(token: &str) -> Option<&str> {
        token.split_once(TOKEN_SEPARATOR).map(|(run_id, _)| run_id)
    }

    /// Whose files a token opens, if it is this run's and still good.
    pub(crate) fn file_scope(&self, token: &str, now_ms: u64) -> Option<FileScope> {
        let (_, secret) = token.split_once(TOKEN_SEPARATOR)?;
        let lingers = TOKEN_LINGERS.as_millis() as u64;
        let expired = matches!(self.standing, Standing::Ended { at_ms, .. } if at_ms + lingers < now_ms);
        (same(&self.file_secret, secret) && !expired)
            .then(|| FileScope { run_id: self.run_id.clone(), tenant_id: self.request.tenant_id.clone() })
    }

    /// How the run ended: its output as MessagePack, or its error; `None`: it has not.
    pub(crate) fn outcome(&self, output: &Bytes) -> Option<Result<Bytes, RunError>> {
        match &self.standing {
            Standing::Ended { error: Some(error), .. } => Some(Err(error.clone())),
            Standing::Ended { .. } => Some(Ok(output.clone())),
            _ => None,
        }
    }

    /// The run as it stands, without its output.
    pub(crate) fn summary(&self) -> RunView {
        let (state, finished_at_ms, error) = match &self.standing {
            Standing::Queued => (RunState::Queued, None, None),
            Standing::Running => (RunState::Running, None, None),
            Standing::Ended { state, at_ms, error } => (*state, Some(*at_ms), error.clone()),
        };
        RunView {
            run_id: self.run_id.clone(),
            function: self.request.function.clone(),
            state,
            attempt: self.attempt,
            worker: self.worker.clone(),
            tenant_id: self.request.tenant_id.clone(),
            user_id: self.request.user_id.clone(),
            created_at_ms: self.created_ms,
            started_at_ms: self.started_ms,
            finished_at_ms,
            output: None,
            error,
        }
    }

    /// The run as it stands, with its output.
    pub(crate) fn view(&self, output: &Bytes) -> RunView {
        let output = if self.has_ended() { json_of(output) } else { None };
        RunView { output, ..self.summary() }
    }

    /// The record as it is stored: MessagePack with names, so that later versions may add fields.
    pub(crate) fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("a record has a MessagePack form")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, rmp_serde::decode::Error> {
        rmp_serde::from_slice(bytes)
    }
}

impl RunError {
    fn new(kind: &str, message: &str, retryable: bool) -> Self {
        Self { kind: kind.to_owned(), message: message.to_owned(), retryable, detail: String::new() }
    }
}

impl From<&v1::TaskExecutionResult> for RunError {
    /// The oldest workers send neither a kind nor a safe message.
    fn from(result: &v1::TaskExecutionResult) -> Self {
        let or = |text: &str, default: &str| if text.is_empty() { default } else { text }.to_owned();
        Self {
            kind: or(&result.error_type, "internal"),
            message: or(&result.safe_message, "job failed"),
            retryable: result.retryable,
            detail: result.error_message.clone(),
        }
    }
}
