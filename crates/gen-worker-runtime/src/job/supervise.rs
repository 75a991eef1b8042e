//! Exactly one outcome for each run, whatever its pipeline does.

use std::sync::Arc;

use bytes::Bytes;
use gen_worker_core::{
    CancelReason, Cancellation, Deadline, Event, FailureKind, JobFailure, OutputMode, RunFacts,
    ports::EventSink,
};
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
    time::{sleep_until, timeout},
};
use tracing::{error, info, warn};

use super::{Job, Workshop, invoke::died, timings::Timings, voice::Voice};
use crate::{admission::Permit, wire::outbound};

type Work = JoinHandle<Result<Bytes, JobFailure>>;
type Ended = Result<Result<Bytes, JobFailure>, JoinError>;

/// Watches one run from outside it.
pub(super) struct Supervisor {
    facts: RunFacts,
    output_mode: OutputMode,
    cancellation: Cancellation,
    permit: Arc<Permit>,
    shop: Arc<Workshop>,
    voice: Arc<Voice>,
    timings: Timings,
}

impl Supervisor {
    pub(super) fn of(job: &Job, cancellation: Cancellation) -> Self {
        Self {
            facts: job.facts.clone(),
            output_mode: job.function.spec().output_mode,
            cancellation,
            permit: job.permit.clone(),
            shop: job.shop.clone(),
            voice: job.voice.clone(),
            timings: job.timings.clone(),
        }
    }

    /// Watches a run, and reports its result.
    pub(super) async fn watch(self, mut work: Work) {
        let ended = self.ended(&mut work).await;
        let left_behind = ended.is_none();
        match outcome(self.cancellation.reason(), ended) {
            Some(outcome) => self.report(outcome),
            None => info!("superseded by a newer attempt: not reported"),
        }
        self.settle(work, left_behind).await;
    }

    /// Watches the handler of a realtime session, and says why the session closes.
    pub(super) async fn watch_session(self, mut work: Work, say: oneshot::Sender<String>) {
        let ended = self.ended(&mut work).await;
        let left_behind = ended.is_none();
        if let Some(Err(failure)) = &ended {
            warn!(kind = failure.kind.as_str(), error = failure.chain(), "failed");
        }
        // Nobody waits for it when the session was closed from this side.
        let _ = say.send(close_reason(self.cancellation.reason(), ended));
        self.settle(work, left_behind).await;
    }

    /// How the work ended by itself or within its grace; `None`: it goes on.
    async fn ended(&self, work: &mut Work) -> Option<Result<Bytes, JobFailure>> {
        let ended = tokio::select! {
            ended = &mut *work => Some(ended),
            reason = told_to_stop(&self.cancellation, self.facts.deadline) => {
                self.cancellation.cancel(reason);
                self.stop(work).await
            }
        };
        // The result is a run's last word, also when something of it goes on.
        self.voice.silence();
        ended.map(|ended| ended.unwrap_or_else(|error| Err(died(&error))))
    }

    async fn settle(self, mut work: Work, left_behind: bool) {
        self.permit.answered();
        if left_behind {
            self.bury(&mut work).await;
        }
    }

    /// Gives the run its grace, then stops waiting for it. Async code is dropped; a thread goes on, and keeps its permit.
    async fn stop(&self, work: &mut Work) -> Option<Ended> {
        let grace = self.shop.config.cancel_grace;
        let ended = timeout(grace, &mut *work).await.ok();
        if ended.is_none() {
            warn!(grace_ms = grace.as_millis() as u64, "the run did not stop when it was told to");
            work.abort();
        }
        ended
    }

    /// Async code is gone a moment after its abort. A thread goes on and keeps its permit; with too many such the worker
    /// leaves, because only the end of the process ends them.
    async fn bury(&self, work: &mut Work) {
        let config = &self.shop.config;
        let gone = timeout(config.cancel_grace, work).await.is_ok();
        if gone && Arc::strong_count(&self.permit) == 1 {
            return;
        }
        let zombies = self.permit.abandoned();
        warn!(zombies, "a function does not stop: it keeps its place");
        if zombies > config.max_zombies {
            error!(zombies, max = config.max_zombies, "too many functions do not stop: the worker leaves");
            self.shop.admission.close();
        }
    }

    /// Says everything about the run, its result last.
    fn report(&self, outcome: Result<Bytes, JobFailure>) {
        let run_id = &self.facts.run_id;
        let (elapsed_ms, stages) = (self.timings.total().as_millis() as u64, &self.timings);
        match &outcome {
            Ok(output) => info!(elapsed_ms, %stages, bytes = output.len(), "succeeded"),
            Err(failure) => {
                warn!(elapsed_ms, %stages, kind = failure.kind.as_str(), error = failure.chain(), "failed");
                if self.output_mode == OutputMode::Incremental {
                    let error = Event::output_error(failure.kind.as_str(), &failure.safe_message);
                    self.shop.outbox.emit_last(error.about(run_id));
                }
            }
        }
        self.shop.outbox.emit(self.timings.event().about(run_id));
        let mut message = outbound::result(run_id, self.facts.attempt, &outcome);
        if let (true, Err(failure)) = (self.shop.config.legacy_errors, &outcome) {
            message = outbound::with_legacy_error(message, failure);
        }
        self.shop.outbox.result((run_id.clone(), self.facts.attempt), message);
    }
}

/// Waits for the cancel signal or the deadline, whichever is first.
async fn told_to_stop(cancellation: &Cancellation, deadline: Option<Deadline>) -> CancelReason {
    let expired = async {
        match deadline {
            Some(deadline) => sleep_until(deadline.at.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        reason = cancellation.canceled() => reason,
        () = expired => CancelReason::Deadline,
    }
}

/// What a run is reported as, from why it was told to stop, if it was, and how it ended, if it did; `None`: not at all.
fn outcome(
    told: Option<CancelReason>,
    ended: Option<Result<Bytes, JobFailure>>,
) -> Option<Result<Bytes, JobFailure>> {
    let failed = |kind, text| Some(Err(JobFailure::new(kind, text)));
    match (told, ended) {
        (None, ended) => ended,
        (Some(CancelReason::Superseded), _) => None,
        // A worker that leaves takes what is finished with it.
        (Some(CancelReason::Drain), Some(Ok(output))) => Some(Ok(output)),
        (Some(CancelReason::Drain), _) => failed(FailureKind::Retryable, "worker is shutting down"),
        (Some(CancelReason::Deadline), _) => failed(FailureKind::Timeout, "deadline exceeded"),
        (Some(_), _) => failed(FailureKind::Canceled, "canceled"),
    }
}

/// What the peer of a realtime session is told, from why its handler was told to stop, if it was, and how it ended.
fn close_reason(told: Option<CancelReason>, ended: Option<Result<Bytes, JobFailure>>) -> String {
    let error = |kind: FailureKind| format!("error:{}", kind.class());
    match (told, ended) {
        (Some(CancelReason::Deadline), _) => error(FailureKind::Timeout),
        (_, Some(Ok(_))) => "completed".to_owned(),
        (Some(CancelReason::Drain), _) => "drain".to_owned(),
        (_, Some(Err(failure))) => error(failure.kind),
        (_, None) => error(FailureKind::Canceled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a run is reported that was told to stop for this reason, and then succeeded, failed, or went on.
    fn reported(told: CancelReason) -> [&'static str; 3] {
        let failure = || JobFailure::new(FailureKind::Validation, "");
        [Some(Ok(Bytes::new())), Some(Err(failure())), None].map(|ended| match outcome(Some(told), ended) {
            None => "nothing",
            Some(Ok(_)) => "success",
            Some(Err(failure)) => failure.kind.as_str(),
        })
    }

    #[test]
    fn the_reason_decides_whatever_the_run_did() {
        assert_eq!(reported(CancelReason::User), ["canceled"; 3]);
        assert_eq!(reported(CancelReason::Deadline), ["timeout"; 3]);
        assert_eq!(reported(CancelReason::Drain), ["success", "retryable", "retryable"]);
        assert_eq!(reported(CancelReason::Superseded), ["nothing"; 3]);
    }

    #[test]
    fn a_session_is_told_why_it_closes() {
        let failure = || JobFailure::new(FailureKind::Validation, "");
        let told = |told| [Some(Ok(Bytes::new())), Some(Err(failure())), None].map(|e| close_reason(told, e));
        assert_eq!(told(None)[..2], ["completed", "error:ValidationError"]);
        let user = ["completed", "error:ValidationError", "error:CanceledError"];
        assert_eq!(told(Some(CancelReason::User)), user);
        assert_eq!(told(Some(CancelReason::Deadline)), ["error:TimeoutError"; 3]);
        assert_eq!(told(Some(CancelReason::Drain)), ["completed", "drain", "drain"]);
    }
}
