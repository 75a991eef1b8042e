//! Exactly one outcome for each run, whatever its pipeline does.
//!
//! The pipeline reports its own end. When the run is told to stop and its pipeline does not end within the grace, that is
//! reported in its place, from the control runtime, on a thread that no user code enters. Whoever is first has the last word.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::FutureExt;
use gen_worker_core::{
    CancelReason, Cancellation, Event, FailureKind, InjectionSpec, JobFailure, ModelRef, OutputMode,
    RunFacts, TraceContext,
    ports::{EventSink, RunSpan},
};
use tokio::{sync::oneshot, task::JoinHandle, time::timeout};
use tracing::{Instrument, Span, error, info_span, warn};

use super::{
    Workshop,
    invoke::panicked,
    line::Line,
    timings::{Stage, Timings},
};
use crate::{
    admission::{Permit, PermitId, Stop},
    meters::Outcome,
    report::{Case, Panicked},
    snapshot::Doing,
    wire::outbound,
};

/// How the pipeline ended.
type Ended = Result<Bytes, JobFailure>;

/// Who is told how a run ended.
pub(super) enum Audience {
    /// The scheduler, by the run's result.
    Scheduler,
    /// What carries the frames of a realtime session, by the reason why it closes.
    Session(Mutex<Option<oneshot::Sender<String>>>),
}

impl Audience {
    pub(super) fn of_session(say: oneshot::Sender<String>) -> Self {
        Self::Session(Mutex::new(Some(say)))
    }
}

/// What becomes of a run's place when it is reported.
enum Place {
    /// It is free, unless a thread that the run started still holds the permit.
    Free(Arc<Permit>),
    /// What goes on keeps it.
    Kept(PermitId),
}

/// One run, from its admission to its last word: what its pipeline and whoever may stop it share.
pub(super) struct Run {
    pub shop: Arc<Workshop>,
    pub facts: Arc<RunFacts>,
    pub cancellation: Cancellation,
    pub timings: Timings,
    output_mode: OutputMode,
    audience: Audience,
    /// Its last word was said: what still works for it speaks to nobody.
    is_silent: AtomicBool,
    /// Its pipeline.
    work: Mutex<Option<JoinHandle<()>>>,
    /// The models that it needs, once that is known and if it needs any.
    models: OnceLock<Vec<String>>,
    /// As the tracing system sees it; `None`: there is none.
    traced: Option<Box<dyn RunSpan>>,
}

impl Run {
    pub(super) fn new(
        shop: Arc<Workshop>,
        facts: RunFacts,
        output_mode: OutputMode,
        audience: Audience,
        traced: Option<Box<dyn RunSpan>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shop,
            facts: Arc::new(facts),
            cancellation: Cancellation::new(),
            timings: Timings::start(),
            output_mode,
            audience,
            is_silent: AtomicBool::new(false),
            work: Mutex::new(None),
            models: OnceLock::new(),
            traced,
        })
    }

    /// Starts the pipeline on the user runtime, where it is made too: what is spawned is moved several times. Its end, a panic
    /// too, is reported there.
    pub(super) fn start<P: Future<Output = Ended> + Send + 'static>(
        self: &Arc<Self>,
        permit: Arc<Permit>,
        pipeline: impl FnOnce(Arc<Self>, Arc<Permit>) -> P + Send + 'static,
    ) {
        let (run, admitted) = (self.clone(), self.stage_begins());
        let work = async move {
            run.timings.taken_up();
            run.went_through(Stage::Queue, admitted);
            let span = run.span();
            run.see_through(permit, pipeline).instrument(span).await;
        };
        let work = self.shop.tracker.track_future(work);
        *self.work() = Some(self.shop.users.spawn(work));
    }

    async fn see_through<P: Future<Output = Ended>>(
        self: Arc<Self>,
        permit: Arc<Permit>,
        pipeline: impl FnOnce(Arc<Self>, Arc<Permit>) -> P,
    ) {
        let pipeline = pipeline(self.clone(), permit.clone());
        let pipeline = Box::pin(AssertUnwindSafe(pipeline).catch_unwind());
        let ended = pipeline.await.unwrap_or_else(|payload| Err(panicked(Panicked::caught(&*payload))));
        if !self.has_last_word() {
            return;
        }
        // A layer that gives up on a blocking call leaves its thread behind.
        let left = (Arc::strong_count(&permit) > 1).then(|| permit.id());
        self.tell(Some(ended), Place::Free(permit));
        if let Some(permit) = left {
            self.cancellation.cancel(CancelReason::User);
            let (shop, span) = (self.shop.clone(), self.span());
            let admission = shop.admission.clone();
            let bury = self.bury(permit, async move { admission.left(permit).await });
            shop.tracker.spawn_on(bury.instrument(span), &shop.control);
        }
    }

    /// When a stage begins, if anybody is told of it.
    pub(super) fn stage_begins(&self) -> Option<SystemTime> {
        self.traced.as_ref().map(|_| SystemTime::now())
    }

    /// A stage that began then is over.
    pub(super) fn went_through(&self, stage: Stage, began: Option<SystemTime>) {
        if let (Some(span), Some(began)) = (&self.traced, began) {
            span.stage(stage.name(), began, SystemTime::now());
        }
    }

    /// It was not admitted.
    pub(super) fn refused(&self) {
        if let Some(span) = &self.traced {
            span.end("refused", Some("refused"));
        }
    }

    /// It needs these models.
    pub(super) fn needs(&self, models: &[(InjectionSpec, ModelRef)]) {
        if !models.is_empty() {
            self.models.get_or_init(|| models.iter().map(|(_, model)| model.known_as().to_owned()).collect());
        }
    }

    /// Emits an event that is part of the run's output, as soon as there is room; none after the run's last word.
    pub(super) async fn emit_durable(&self, event: Event) {
        self.shop.outbox.emit_durable(event.about(&self.facts.run_id), || self.may_speak()).await;
    }

    /// Gives the pipeline its grace, then stops waiting for it. Async code is dropped; a thread goes on, and keeps its permit.
    async fn wind_up(self: Arc<Self>, permit: PermitId) {
        let work = self.work().take();
        let mut work = work.expect("a run is started before anything can stop it, and stopped once");
        let grace = self.shop.config.cancel_grace;
        if timeout(grace, &mut work).await.is_ok() {
            return;
        }
        if self.has_last_word() {
            warn!(grace_ms = grace.as_millis() as u64, "the run did not stop when it was told to");
            self.tell(None, Place::Kept(permit));
        }
        work.abort();
        self.bury(permit, work).await;
    }

    /// Async code is gone a moment after its abort. A thread goes on and keeps its permit; with too many such the worker
    /// leaves, because only the end of the process ends them. On the control runtime: user code may keep the other busy.
    async fn bury(self: Arc<Self>, permit: PermitId, end: impl Future) {
        let config = &self.shop.config;
        // Whose place is free has a permit no more, and need not wait for whoever looks next.
        self.shop.outbox.take_in();
        // It ends with an error, which says that it was aborted, or not in time.
        let _ = timeout(config.cancel_grace, end).await;
        let Some(zombies) = self.shop.outbox.abandon(&self.shop.admission, permit) else { return };
        warn!(zombies, "a function does not stop: it keeps its place");
        if zombies > config.max_zombies {
            error!(zombies, max = config.max_zombies, "too many functions do not stop: the worker leaves");
            self.shop.admission.overrun(zombies);
        }
    }

    /// What every line about the run carries.
    pub(super) fn span(&self) -> Span {
        let facts = &self.facts;
        // As text: what is shown through `Display` is copied twice more.
        let (run_id, function) = (facts.run_id.as_str(), facts.function.as_str());
        info_span!("job", run_id, function, attempt = facts.attempt)
    }

    fn has_last_word(&self) -> bool {
        !self.is_silent.swap(true, Ordering::AcqRel)
    }

    /// Not after its last word, nor beside the attempt that took its place.
    fn may_speak(&self) -> bool {
        let superseded = self.cancellation.reason() == Some(CancelReason::Superseded);
        !superseded && !self.is_silent.load(Ordering::Acquire)
    }

    /// Says how the run ended; `None`: it did not.
    fn tell(&self, ended: Option<Ended>, place: Place) {
        let told = self.cancellation.reason();
        match &self.audience {
            Audience::Scheduler => {
                let outcome = outcome(told, ended);
                let line = self.conclude(counted(outcome.as_ref()), outcome.as_ref());
                match outcome {
                    Some(outcome) => self.report(&outcome, place, line),
                    None => {
                        write_now(line);
                        self.vacate(place);
                    }
                }
            }
            Audience::Session(say) => {
                let went_on = Outcome::Failed(FailureKind::Canceled);
                let outcome = ended.as_ref().map_or(went_on, |ended| counted(Some(ended)));
                write_now(self.conclude(outcome, ended.as_ref()));
                self.vacate(place);
                let say = say.lock().unwrap_or_else(PoisonError::into_inner).take();
                // Nobody waits for it when the session was closed from this side.
                let _ = say.map(|say| say.send(close_reason(told, ended)));
            }
        }
    }

    /// Tells of the end whoever watches, and makes its line.
    fn conclude(&self, outcome: Outcome, ended: Option<&Ended>) -> Option<Box<Line>> {
        self.count(outcome);
        self.trace(outcome, ended);
        let output = match ended {
            Some(Ok(output)) => Ok(output.len()),
            Some(Err(failure)) => {
                self.write_down(failure);
                Err(failure.chain())
            }
            None => Err("it was told to stop, and its end was not waited for".to_owned()),
        };
        Line::of(Span::current(), outcome, &self.timings, output, &self.shop.lines)
    }

    /// Shows the end to the tracing system.
    fn trace(&self, outcome: Outcome, ended: Option<&Ended>) {
        if let Some(span) = &self.traced {
            let failure = match ended {
                Some(Ok(_)) => None,
                Some(Err(failure)) => Some(failure.safe_message.as_str()),
                None => Some("it was told to stop, and its end was not waited for"),
            };
            span.end(outcome.as_str(), failure);
        }
    }

    fn count(&self, outcome: Outcome) {
        let (function, timings) = (&self.facts.function, &self.timings);
        self.shop.meters.ended(function, outcome, timings.total(), timings.reached());
    }

    /// Says everything about the run, its result last.
    fn report(&self, outcome: &Ended, place: Place, line: Option<Box<Line>>) {
        let (outbox, run_id) = (&self.shop.outbox, &self.facts.run_id);
        if let (OutputMode::Incremental, Err(failure)) = (self.output_mode, outcome) {
            let error = Event::output_error(failure.kind.as_str(), &failure.safe_message);
            outbox.emit_last(error.about(run_id));
        }
        if let Some(timings) = self.timings.event() {
            outbox.emit(timings.about(run_id));
        }
        let result = if self.shop.config.legacy_errors { outbound::legacy_result } else { outbound::result };
        let message = result(run_id, self.facts.attempt, outcome);
        let key = (run_id.clone(), self.facts.attempt);
        match place {
            Place::Free(permit) => outbox.conclude(key, message, permit, line),
            Place::Kept(permit) => {
                outbox.result(key, message, line);
                self.shop.admission.answered(permit);
            }
        }
    }

    /// Takes the run for answered without a result.
    fn vacate(&self, place: Place) {
        match place {
            Place::Free(permit) => permit.settle(),
            Place::Kept(permit) => self.shop.admission.answered(permit),
        }
    }

    /// For those who look for the cause of a fault later.
    fn write_down(&self, failure: &JobFailure) {
        let Some(reports) = &self.shop.reports else { return };
        let millis = |took: Duration| took.as_micros() as f64 / 1000.0;
        let case = Case {
            facts: &self.facts,
            failure,
            elapsed_ms: millis(self.timings.total()),
            stage: self.timings.last().map(Stage::name),
            stages_ms: self.timings.reached().map(|(stage, took)| (stage.name(), millis(took))).collect(),
            models: self.models.get().cloned().unwrap_or_default(),
        };
        reports.leave(case, &self.shop.users, &self.shop.tracker);
    }

    fn work(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stop for Run {
    fn doing(&self) -> Doing {
        Doing { age: self.timings.total(), stage: self.timings.current() }
    }

    /// Called on the control runtime.
    fn stop(self: Arc<Self>, permit: PermitId, reason: CancelReason) {
        if self.cancellation.cancel(reason) {
            let (tracker, span) = (self.shop.tracker.clone(), self.span());
            tracker.spawn(self.wind_up(permit).instrument(span));
        }
    }
}

impl EventSink for Run {
    fn emit(&self, event: Event) {
        if self.may_speak() {
            self.shop.outbox.emit(event.about(&self.facts.run_id));
        }
    }

    fn trace(&self) -> Option<&TraceContext> {
        self.facts.scope.trace.as_ref()
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

/// Of a run that has no result to deliver.
fn write_now(line: Option<Box<Line>>) {
    if let Some(line) = line {
        line.write(None);
    }
}

/// As what a run is counted that is reported so; `None`: not at all.
fn counted(reported: Option<&Ended>) -> Outcome {
    match reported {
        Some(Ok(_)) => Outcome::Success,
        Some(Err(failure)) => Outcome::Failed(failure.kind),
        None => Outcome::Superseded,
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
