//! Whether a run may start, and what it holds while it does.

mod book;

use std::{
    convert::Infallible,
    future::pending,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Instant, SystemTime},
};

use gen_worker_core::{
    ByteLimit, CancelReason, FailureKind, FunctionName, FunctionSpec, JobFailure, RunId,
    ports::CredentialSource,
};
use tokio::{sync::Notify, time::sleep_until};

use self::book::Book;
pub(crate) use self::book::{Held, Holder, PermitId, Zombies};
use crate::{
    shutdown::{Phase, Shutdown},
    snapshot::Doing,
};

/// What admission enforces.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub max_input: ByteLimit,
    pub max_concurrency: Option<NonZeroU32>,
}

/// What admission needs to know of a run.
pub(crate) struct Applicant<'a> {
    pub run_id: &'a RunId,
    pub attempt: i64,
    pub spec: &'a FunctionSpec,
    pub payload_bytes: usize,
    /// When it has to stop; `None`: whenever it does.
    pub deadline: Option<Instant>,
    /// Whether there is room for its result.
    pub is_room: bool,
}

/// What can be told to stop. Telling it again changes nothing.
pub(crate) trait Stop: Send + Sync {
    /// What it is doing.
    fn doing(&self) -> Doing;

    /// Stops what holds this permit.
    fn stop(self: Arc<Self>, permit: PermitId, reason: CancelReason);
}

/// Why a run is not started.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It ends here, with this failure.
    Failed(JobFailure),
    /// The same attempt is already running.
    AlreadyRunning,
    /// The same attempt has finished, and its result is held.
    Finished,
    /// A newer attempt is running; this one is history.
    Stale,
}

/// What is asked before all else (§3.2).
pub(crate) fn unknown_function(function: &FunctionName) -> JobFailure {
    JobFailure::new(FailureKind::Internal, "internal error")
        .detailed(format!("Unknown function requested: {function}"))
}

fn input_too_large(bytes: usize, limit: ByteLimit) -> JobFailure {
    let max = limit.max().unwrap_or(u64::MAX);
    JobFailure::new(FailureKind::Validation, "invalid input")
        .detailed(format!("Input payload too large: {bytes} bytes (max {max})"))
}

/// Somewhere else, or later, the run may be taken.
fn busy(error_message: String) -> JobFailure {
    JobFailure::new(FailureKind::Retryable, "worker busy").detailed(error_message)
}

/// Hands out permits. Clones share the book.
#[derive(Clone)]
pub(crate) struct Admission(Arc<Office>);

struct Office {
    book: Mutex<Book>,
    /// A deadline has come that is sooner than all others.
    sooner: Notify,
    /// A permit was given back.
    left: Notify,
    /// How many functions did not stop when that became too many.
    overrun: OnceLock<u32>,
    credential: Arc<dyn CredentialSource>,
    shutdown: Shutdown,
}

impl Admission {
    pub(crate) fn new(limits: Limits, credential: Arc<dyn CredentialSource>, shutdown: Shutdown) -> Self {
        let (book, overrun) = (Mutex::new(Book::new(limits)), OnceLock::new());
        let (sooner, left) = (Notify::new(), Notify::new());
        Self(Arc::new(Office { book, sooner, left, overrun, credential, shutdown }))
    }

    /// Decides about a run, and takes a permit if it may start.
    pub(crate) fn admit(&self, applicant: &Applicant<'_>, run: Arc<dyn Stop>) -> Result<Permit, Refusal> {
        let full =
            (!applicant.is_room).then_some("Too many results wait to be delivered; refusing new tasks");
        let closed = self.closed().or(full);
        let mut book = self.book();
        let superseded = book.judge(applicant, closed, Instant::now())?;
        let (id, is_soonest) = book.enter(applicant, run);
        drop(book);
        if is_soonest {
            self.0.sooner.notify_one();
        }
        stop(superseded, CancelReason::Superseded);
        Ok(Permit { admission: self.clone(), id })
    }

    /// Tells a run to stop; if it is not running, it will be refused should it come within a minute.
    pub(crate) fn interrupt(&self, run_id: &RunId, attempt: i64) {
        let running = self.book().interrupt(run_id, attempt, Instant::now());
        stop(running, CancelReason::User);
    }

    /// Tells everything to stop.
    pub(crate) fn cancel_all(&self, reason: CancelReason) {
        let all = self.book().all();
        stop(all, reason);
    }

    /// Tells runs to stop when their time is over, for as long as it is polled.
    pub(crate) async fn enforce_deadlines(&self) -> Infallible {
        loop {
            let next = self.book().next_deadline();
            let passed = async {
                match next {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = passed => {}
                () = self.0.sooner.notified() => {}
            }
            let overdue = self.book().take_overdue(tokio::time::Instant::now().into_std());
            stop(overdue, CancelReason::Deadline);
        }
    }

    /// Whether a run that comes now could be admitted.
    pub(crate) fn is_open(&self) -> bool {
        self.closed().is_none()
    }

    /// Why no run is admitted now.
    pub(crate) fn closed(&self) -> Option<&'static str> {
        if self.0.shutdown.phase() >= Phase::Draining {
            return Some("Worker is draining; refusing new tasks");
        }
        (!self.0.credential.usable(SystemTime::now())).then_some("The worker's credential has expired.")
    }

    /// Whether this attempt was admitted and not yet answered.
    pub(crate) fn is_running(&self, run_id: &RunId, attempt: i64) -> bool {
        self.book().is_running(run_id, attempt)
    }

    /// The runs that were admitted and not yet answered.
    pub(crate) fn active(&self) -> Vec<(RunId, i64)> {
        self.book().unanswered()
    }

    /// The run was answered: the same run may be sent again. Its permit stays taken until what it started has ended.
    pub(crate) fn answered(&self, permit: PermitId) {
        self.book().answered(permit);
    }

    /// The run was reported and does not stop. Returns how many such there are; `None`: it has ended after all.
    pub(crate) fn abandon(&self, permit: PermitId) -> Option<u32> {
        self.book().abandon(permit)
    }

    /// Waits until this permit was given back.
    pub(crate) async fn left(&self, permit: PermitId) {
        loop {
            let left = self.0.left.notified();
            if !self.book().holds(permit) {
                return;
            }
            left.await;
        }
    }

    /// Too many functions do not stop: the worker drains.
    pub(crate) fn overrun(&self, zombies: u32) {
        self.0.overrun.get_or_init(|| zombies);
        self.0.shutdown.drain();
    }

    /// How many functions did not stop, if that is why the worker leaves.
    pub(crate) fn overrun_by(&self) -> Option<u32> {
        self.0.overrun.get().copied()
    }

    /// Everything that holds a permit.
    pub(crate) fn list(&self) -> Vec<Holder> {
        self.book().list()
    }

    /// How many permits are held.
    pub(crate) fn held(&self) -> Held {
        self.book().held()
    }

    /// The work that does not stop.
    pub(crate) fn zombies(&self) -> Zombies {
        self.book().zombies()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Called without the book's lock.
fn stop(running: impl IntoIterator<Item = book::Running>, reason: CancelReason) {
    running.into_iter().for_each(|(permit, run)| run.stop(permit, reason));
}

/// The right to run, given back when dropped. Whatever a run started holds a clone (behind an `Arc`), so that work which
/// does not stop keeps its place.
pub(crate) struct Permit {
    admission: Admission,
    id: PermitId,
}

impl Permit {
    pub(crate) fn id(&self) -> PermitId {
        self.id
    }

    /// The run was answered. The permit is given back, unless something that the run started still holds it.
    pub(crate) fn settle(self: Arc<Self>) {
        let id = self.id;
        match Arc::try_unwrap(self) {
            Ok(last) => drop(last),
            Err(held) => held.admission.answered(id),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.book().leave(self.id);
        self.admission.0.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
