//! The runs: what waits, what runs where, what ended how. State only; whoever owns it does the sending.
//!
//! An attempt is a fence. A result counts if its attempt is the one that runs; a worker that does not count attempts
//! (0) is believed if the run is with it. Giving a run back to the queue raises its attempt, so that whatever the old
//! one still says is stale.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use gen_worker_core::Digest;
use gen_worker_proto::scheduler as v1;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    auth::{Now, random_token},
    dispatch::Waiting,
    events::EventLog,
    run::{RunError, RunRequest, RunState, RunView},
};

/// Most runs that wait or run.
const MAX_OPEN: usize = 10_000;

/// Most bytes of payloads, outputs and events held; ended runs are forgotten before new ones are refused.
const MAX_BYTES: usize = 1 << 30;

/// How often workers may refuse a run before a refusal counts as a failure.
const MAX_REFUSALS: u32 = 100;

/// How long a run's file token is good after its end: uploads that were under way still finish.
const TOKEN_LINGERS: Duration = Duration::from_secs(300);

/// How long a refused run waits.
const REFUSED_WAIT: Duration = Duration::from_millis(100);

/// Why a run is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its id names another request.
    Conflict,
    /// There is no room.
    Full,
}

/// What asking for a run's end did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Canceled {
    /// It had ended before.
    Ended,
    /// It waited, and has ended.
    Waiting,
    /// It runs; this session must be told, about this attempt.
    Running { session: u64, attempt: i64 },
}

/// Who sent something.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender<'a> {
    pub(crate) session: u64,
    pub(crate) worker_id: &'a str,
}

/// Whose files a token opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileScope {
    pub(crate) run_id: String,
    pub(crate) tenant_id: Option<String>,
}

#[derive(Debug)]
enum State {
    Queued { not_before: Instant },
    Running { session: u64, accepted: bool, lost_at: Option<Instant> },
    Ended { state: RunState, at: Instant, at_ms: u64, output: Bytes, error: Option<RunError> },
}

#[derive(Debug)]
struct Run {
    /// Place in the queue; a run that is tried again keeps it.
    place: u64,
    request: RunRequest,
    digest: Digest,
    state: State,
    attempt: i64,
    failures: u32,
    refusals: u32,
    cancel_requested: bool,
    worker: Option<String>,
    file_token: String,
    created_ms: u64,
    started_ms: Option<u64>,
    log: EventLog,
}

impl Run {
    fn bytes(&self) -> usize {
        let output = match &self.state {
            State::Ended { output, .. } => output.len(),
            _ => 0,
        };
        self.request.payload.len() + output + self.log.bytes()
    }

    /// Whether the run is in the hands of `sender`, at this attempt.
    fn is_with(&self, attempt: i64, sender: Sender<'_>) -> bool {
        let running = matches!(self.state, State::Running { .. });
        let same = match attempt {
            0 => self.worker.as_deref() == Some(sender.worker_id),
            attempt => attempt == self.attempt,
        };
        running && same
    }
}

/// All runs that are known, in memory.
#[derive(Debug)]
pub(crate) struct Queue {
    runs: HashMap<String, Run>,
    waiting: BTreeMap<u64, String>,
    running: BTreeSet<String>,
    ended: VecDeque<String>,
    tokens: HashMap<String, String>,
    history: usize,
    next_place: u64,
    /// Bytes of ended runs; those of open ones are counted when it matters.
    ended_bytes: usize,
    open_bytes: usize,
}

impl Queue {
    /// Remembers `history` ended runs.
    pub(crate) fn new(history: usize) -> Self {
        Self {
            runs: HashMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeSet::new(),
            ended: VecDeque::new(),
            tokens: HashMap::new(),
            history,
            next_place: 0,
            ended_bytes: 0,
            open_bytes: 0,
        }
    }

    /// Takes a run; true if it is new, false if it was taken before.
    pub(crate) fn submit(&mut self, run_id: &str, request: RunRequest, now: Now) -> Result<bool, Refusal> {
        let digest = request.digest();
        if let Some(known) = self.runs.get(run_id) {
            return if known.digest == digest { Ok(false) } else { Err(Refusal::Conflict) };
        }
        let open = self.waiting.len() + self.running.len();
        if open >= MAX_OPEN || self.open_bytes + request.payload.len() > MAX_BYTES {
            return Err(Refusal::Full);
        }
        self.open_bytes += request.payload.len();
        let mut run = Run {
            place: self.next_place,
            request,
            digest,
            state: State::Queued { not_before: now.at },
            attempt: 1,
            failures: 0,
            refusals: 0,
            cancel_requested: false,
            worker: None,
            file_token: random_token(),
            created_ms: now.unix_ms,
            started_ms: None,
            log: EventLog::new(),
        };
        run.log.push("queued", "{}");
        self.next_place += 1;
        self.tokens.insert(run.file_token.clone(), run_id.to_owned());
        self.waiting.insert(run.place, run_id.to_owned());
        self.runs.insert(run_id.to_owned(), run);
        Ok(true)
    }

    /// The runs that may start now, first come first.
    pub(crate) fn ready(&self, now: Instant) -> impl Iterator<Item = Waiting<'_>> {
        self.waiting.values().filter_map(move |run_id| {
            let run = &self.runs[run_id];
            let ready = matches!(run.state, State::Queued { not_before } if not_before <= now);
            ready.then(|| Waiting { run_id, function: &run.request.function, models: &run.request.models })
        })
    }

    /// How many runs of each function a session has.
    pub(crate) fn load(&self, of: u64) -> HashMap<&str, usize> {
        let mut load = HashMap::new();
        for run in self.running.iter().map(|run_id| &self.runs[run_id]) {
            if matches!(run.state, State::Running { session, .. } if session == of) {
                *load.entry(run.request.function.as_str()).or_default() += 1;
            }
        }
        load
    }

    /// Gives a waiting run to a session and returns what is to be sent, but for the address of the file API.
    pub(crate) fn start(&mut self, run_id: &str, to: Sender<'_>, now: Now) -> v1::TaskExecutionRequest {
        let run = self.runs.get_mut(run_id).expect("only known runs wait");
        self.waiting.remove(&run.place);
        self.running.insert(run_id.to_owned());
        run.state = State::Running { session: to.session, accepted: false, lost_at: None };
        run.worker = Some(to.worker_id.to_owned());
        run.started_ms = Some(now.unix_ms);
        let started = json!({"attempt": run.attempt, "worker": to.worker_id});
        run.log.push("started", started.to_string());
        let timeout = run.request.timeout.unwrap_or_default().as_millis();
        v1::TaskExecutionRequest {
            run_id: run_id.to_owned(),
            function_name: run.request.function.clone(),
            input_payload: run.request.payload.clone(),
            required_models: run.request.models.clone(),
            timeout_ms: i64::try_from(timeout).unwrap_or(i64::MAX),
            tenant_id: run.request.tenant_id.clone().unwrap_or_default(),
            user_id: run.request.user_id.clone().unwrap_or_default(),
            file_base_url: String::new(),
            file_token: run.file_token.clone(),
            attempt: run.attempt,
            ..Default::default()
        }
    }

    /// A worker has admitted a run.
    pub(crate) fn accept(&mut self, accepted_run: &v1::RunAccepted, by: Sender<'_>) {
        if let Some(run) = self.runs.get_mut(&accepted_run.run_id)
            && run.is_with(accepted_run.attempt, by)
            && let State::Running { accepted, .. } = &mut run.state
        {
            *accepted = true;
        }
    }

    /// Takes a worker's word that it still has a run; false if the run is not its any more.
    pub(crate) fn adopt(&mut self, active: &v1::ActiveRun, by: Sender<'_>) -> bool {
        let Some(run) = self.runs.get_mut(&active.run_id) else {
            return false;
        };
        if run.cancel_requested || !run.is_with(active.attempt, by) {
            return false;
        }
        run.worker = Some(by.worker_id.to_owned());
        run.state = State::Running { session: by.session, accepted: true, lost_at: None };
        true
    }

    /// Takes a result. `accepts`: the worker says when it admits a run, so a failure before that is a refusal.
    pub(crate) fn settle(
        &mut self,
        result: v1::TaskExecutionResult,
        from: Sender<'_>,
        accepts: bool,
        now: Now,
    ) {
        let Some(run) = self.runs.get_mut(&result.run_id) else {
            return;
        };
        if !run.is_with(result.attempt, from) {
            return;
        }
        if result.success {
            return self.end(&result.run_id, RunState::Succeeded, result.output_payload, None, now);
        }
        let error = RunError::from(&result);
        let refused = accepts && matches!(run.state, State::Running { accepted: false, .. });
        if refused && error.retryable && !run.cancel_requested && run.refusals < MAX_REFUSALS {
            run.refusals += 1;
            return self.requeue(&result.run_id, now.at + REFUSED_WAIT);
        }
        self.fail(&result.run_id, error, now);
    }

    /// Ends an attempt badly: another follows, or the run ends.
    fn fail(&mut self, run_id: &str, error: RunError, now: Now) {
        let run = self.runs.get_mut(run_id).expect("only known runs fail");
        run.failures += 1;
        let retry = &run.request.retry;
        if error.kind == "canceled" || (run.cancel_requested && error.retryable) {
            self.end(run_id, RunState::Canceled, Bytes::new(), Some(RunError::canceled()), now);
        } else if retry.allows(&error, run.failures) {
            let delay = retry.delay(run.failures);
            let failed =
                json!({"attempt": run.attempt, "error": error, "retry_in_ms": delay.as_millis() as u64});
            run.log.push("attempt_failed", failed.to_string());
            self.requeue(run_id, now.at + delay);
        } else {
            self.end(run_id, RunState::Failed, Bytes::new(), Some(error), now);
        }
    }

    fn requeue(&mut self, run_id: &str, not_before: Instant) {
        let run = self.runs.get_mut(run_id).expect("only known runs are given back");
        run.attempt += 1;
        run.state = State::Queued { not_before };
        self.running.remove(run_id);
        self.waiting.insert(run.place, run_id.to_owned());
    }

    fn end(&mut self, run_id: &str, state: RunState, output: Bytes, error: Option<RunError>, now: Now) {
        let run = self.runs.get_mut(run_id).expect("only known runs end");
        self.open_bytes -= run.request.payload.len();
        run.request.payload = Bytes::new();
        run.state = State::Ended { state, at: now.at, at_ms: now.unix_ms, output, error };
        run.log.wake();
        self.ended_bytes += run.bytes();
        self.waiting.remove(&run.place);
        self.running.remove(run_id);
        self.ended.push_back(run_id.to_owned());
        self.forget();
    }

    fn forget(&mut self) {
        while self.ended.len() > self.history.max(1) || (self.ended_bytes > MAX_BYTES && self.ended.len() > 1)
        {
            let oldest = self.ended.pop_front().and_then(|run_id| self.runs.remove(&run_id));
            let Some(oldest) = oldest else { break };
            self.ended_bytes -= oldest.bytes();
            self.tokens.remove(&oldest.file_token);
        }
    }

    /// A session's stream is gone; its runs wait for the worker to come back.
    pub(crate) fn lose(&mut self, gone: u64, now: Instant) {
        for run_id in &self.running {
            if let Some(run) = self.runs.get_mut(run_id)
                && let State::Running { session, lost_at, .. } = &mut run.state
                && *session == gone
            {
                *lost_at = Some(now);
            }
        }
    }

    /// Gives up on workers that have not come back within `grace`.
    pub(crate) fn expire(&mut self, grace: Duration, now: Now) {
        for run_id in self.running.clone() {
            if matches!(self.runs[&run_id].state, State::Running { lost_at: Some(at), .. } if at + grace <= now.at)
            {
                self.fail(&run_id, RunError::worker_lost(), now);
            }
        }
    }

    /// When something will change by itself; `None`: nothing will.
    pub(crate) fn next_change(&self, grace: Duration, now: Instant) -> Option<Instant> {
        let open = self.waiting.values().chain(&self.running);
        open.filter_map(|run_id| match self.runs[run_id].state {
            State::Queued { not_before } => Some(not_before).filter(|&at| at > now),
            State::Running { lost_at, .. } => lost_at.map(|at| at + grace),
            State::Ended { .. } => None,
        })
        .min()
    }

    /// Asks for a run's end; `None`: there is no such run.
    pub(crate) fn cancel(&mut self, run_id: &str, now: Now) -> Option<Canceled> {
        let run = self.runs.get_mut(run_id)?;
        Some(match run.state {
            State::Ended { .. } => Canceled::Ended,
            State::Queued { .. } => {
                self.end(run_id, RunState::Canceled, Bytes::new(), Some(RunError::canceled()), now);
                Canceled::Waiting
            }
            State::Running { session, .. } => {
                run.cancel_requested = true;
                Canceled::Running { session, attempt: run.attempt }
            }
        })
    }

    /// Takes what a run says, if it is with the sender.
    pub(crate) fn event(&mut self, event: v1::WorkerEvent, from: Sender<'_>) {
        if let Some(run) = self.runs.get_mut(&event.run_id)
            && matches!(run.state, State::Running { session, .. } if session == from.session)
        {
            run.log.forward(&event.event_type, event.payload_json);
        }
    }

    /// A run as it stands, with its output; `None`: there is no such run.
    pub(crate) fn view(&self, run_id: &str) -> Option<RunView> {
        let mut view = self.summary(run_id, self.runs.get(run_id)?);
        if let State::Ended { output, .. } = &self.runs[run_id].state {
            view.output = gen_worker_core::json_of(output);
        }
        Some(view)
    }

    /// All runs, newest first, without their outputs.
    pub(crate) fn list(&self) -> Vec<RunView> {
        let mut runs: Vec<_> = self.runs.iter().collect();
        runs.sort_unstable_by_key(|(_, run)| std::cmp::Reverse(run.place));
        runs.into_iter().map(|(run_id, run)| self.summary(run_id, run)).collect()
    }

    fn summary(&self, run_id: &str, run: &Run) -> RunView {
        let (state, finished_at_ms, error) = match &run.state {
            State::Queued { .. } => (RunState::Queued, None, None),
            State::Running { .. } => (RunState::Running, None, None),
            State::Ended { state, at_ms, error, .. } => (*state, Some(*at_ms), error.clone()),
        };
        RunView {
            run_id: run_id.to_owned(),
            function: run.request.function.clone(),
            state,
            attempt: run.attempt,
            worker: run.worker.clone(),
            tenant_id: run.request.tenant_id.clone(),
            user_id: run.request.user_id.clone(),
            created_at_ms: run.created_ms,
            started_at_ms: run.started_ms,
            finished_at_ms,
            output: None,
            error,
        }
    }

    /// How a run ended: its output as MessagePack, or its error. The outer `None`: there is no such run; the inner:
    /// it has not ended.
    pub(crate) fn outcome(&self, run_id: &str) -> Option<Option<Result<Bytes, RunError>>> {
        Some(match &self.runs.get(run_id)?.state {
            State::Ended { error: Some(error), .. } => Some(Err(error.clone())),
            State::Ended { output, .. } => Some(Ok(output.clone())),
            _ => None,
        })
    }

    /// What a run said; `None`: there is no such run.
    pub(crate) fn log(&self, run_id: &str) -> Option<&EventLog> {
        self.runs.get(run_id).map(|run| &run.log)
    }

    /// Whose files a token opens; `None`: it is not known or no longer good.
    pub(crate) fn file_scope(&self, token: &str, now: Instant) -> Option<FileScope> {
        let run_id = self.tokens.get(token)?;
        let run = &self.runs[run_id];
        let expired = matches!(run.state, State::Ended { at, .. } if at + TOKEN_LINGERS < now);
        (!expired).then(|| FileScope { run_id: run_id.clone(), tenant_id: run.request.tenant_id.clone() })
    }
}

impl RunError {
    fn canceled() -> Self {
        Self::new("canceled", "canceled", false)
    }

    fn worker_lost() -> Self {
        Self::new("retryable", "the worker was lost", true)
    }

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

#[cfg(test)]
mod tests;
