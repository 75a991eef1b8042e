//! Whether a run may start, and what it holds while it does.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use gen_worker_core::{
    ByteLimit, CancelReason, Cancellation, FailureKind, FunctionName, FunctionSpec, JobFailure, RunId,
    ports::CredentialSource,
};

use crate::shutdown::{Phase, Shutdown};

/// How long a cancel for an unknown run is remembered, so that a dispatch that it overtook ends `canceled`.
const TOMBSTONE: Duration = Duration::from_secs(60);

/// Most tombstones kept; the oldest go first.
const MAX_TOMBSTONES: usize = 10_000;

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
    pub function: &'a FunctionName,
    /// `None`: there is no such function.
    pub spec: Option<&'a FunctionSpec>,
    pub payload_bytes: usize,
}

/// Why a run is not started.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It ends here, with this failure.
    Failed(JobFailure),
    /// The same attempt is already running.
    AlreadyRunning,
    /// A newer attempt is running; this one is history.
    Stale,
}

struct Active {
    attempt: i64,
    function: FunctionName,
    cancellation: Cancellation,
    /// It was reported, and does not stop.
    zombie: bool,
    /// It is a realtime session, which no scheduler knows as a run.
    session: bool,
}

/// Work that was told to stop, was reported, and goes on: it keeps its place.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Zombies {
    pub all: u32,
    pub by_function: HashMap<FunctionName, u32>,
}

/// How many places are taken, in the worker and in one function.
struct Places {
    all: u32,
    function: u32,
}

/// The state behind the permits: which runs hold one. Pure: nothing here waits or reads a clock.
pub(crate) struct Book {
    limits: Limits,
    next_permit: u64,
    active: HashMap<u64, (RunId, Active)>,
    by_run: HashMap<RunId, u64>,
    by_function: HashMap<FunctionName, u32>,
    tombstones: VecDeque<(Instant, RunId, i64)>,
}

impl Book {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            next_permit: 0,
            active: HashMap::new(),
            by_run: HashMap::new(),
            by_function: HashMap::new(),
            tombstones: VecDeque::new(),
        }
    }

    /// Decides, in the order of the contract (§3.2); `closed` says why no run is taken at all. A higher attempt of a run that
    /// is running supersedes it.
    fn judge(&mut self, run: &Applicant<'_>, closed: Option<&str>, now: Instant) -> Result<(), Refusal> {
        let failed = |failure| Err(Refusal::Failed(failure));
        let Some(spec) = run.spec else {
            return failed(unknown_function(run.function));
        };
        if !self.limits.max_input.admits(run.payload_bytes as u64) {
            return failed(input_too_large(run.payload_bytes, self.limits.max_input));
        }
        if let Some(why) = closed {
            return failed(busy(why.to_owned()));
        }
        if self.take_tombstone(run, now) {
            return failed(JobFailure::new(FailureKind::Canceled, "canceled"));
        }
        let mut places = Places { all: self.active.len() as u32, function: self.running(&spec.name) };
        if let Some(active) = self.by_run.get(run.run_id).map(|permit| &self.active[permit].1) {
            match run.attempt.cmp(&active.attempt) {
                Ordering::Less => return Err(Refusal::Stale),
                Ordering::Equal => return Err(Refusal::AlreadyRunning),
                Ordering::Greater => {
                    active.cancellation.cancel(CancelReason::Superseded);
                    // Its place is the new attempt's: it stops, and nobody waits for its result.
                    places.all -= 1;
                    places.function -= u32::from(active.function == spec.name);
                }
            }
        }
        self.full(spec, places).map_or(Ok(()), failed)
    }

    fn running(&self, function: &FunctionName) -> u32 {
        self.by_function.get(function).copied().unwrap_or(0)
    }

    fn full(&self, spec: &FunctionSpec, taken: Places) -> Option<JobFailure> {
        let reached = |limit: Option<NonZeroU32>, running: u32| limit.filter(|limit| running >= limit.get());
        if let Some(limit) = reached(self.limits.max_concurrency, taken.all) {
            return Some(busy(format!("Worker concurrency limit reached ({limit}).")));
        }
        let limit = reached(spec.resources.max_concurrency, taken.function)?;
        Some(busy(format!("Function concurrency limit reached for {} ({limit}).", spec.name)))
    }

    fn take_tombstone(&mut self, run: &Applicant<'_>, now: Instant) -> bool {
        self.tombstones.retain(|(since, ..)| now.duration_since(*since) < TOMBSTONE);
        let covers = |(_, id, attempt): &(Instant, RunId, i64)| {
            id == run.run_id && (*attempt == run.attempt || *attempt == 0)
        };
        let found = self.tombstones.iter().position(covers);
        found.map(|at| self.tombstones.remove(at)).is_some()
    }

    fn enter(&mut self, run: &Applicant<'_>, cancellation: Cancellation) -> u64 {
        let permit = self.next_permit;
        self.next_permit += 1;
        *self.by_function.entry(run.function.clone()).or_default() += 1;
        self.by_run.insert(run.run_id.clone(), permit);
        let (attempt, function) = (run.attempt, run.function.clone());
        let session = run.spec.is_some_and(FunctionSpec::is_realtime);
        let active = Active { attempt, function, cancellation, zombie: false, session };
        self.active.insert(permit, (run.run_id.clone(), active));
        permit
    }

    /// The run was answered: the same run may be sent again. Its permit stays taken until what it started has ended.
    fn answered(&mut self, permit: u64) {
        if let Some((run_id, _)) = self.active.get(&permit)
            && self.by_run.get(run_id) == Some(&permit)
        {
            self.by_run.remove(run_id);
        }
    }

    fn zombies(&self) -> Zombies {
        let mut zombies = Zombies::default();
        for (_, active) in self.active.values().filter(|(_, active)| active.zombie) {
            zombies.all += 1;
            *zombies.by_function.entry(active.function.clone()).or_default() += 1;
        }
        zombies
    }

    fn leave(&mut self, permit: u64) {
        self.answered(permit);
        if let Some((_, active)) = self.active.remove(&permit)
            && let Some(running) = self.by_function.get_mut(&active.function)
        {
            *running -= 1;
        }
    }

    fn interrupt(&mut self, run_id: &RunId, attempt: i64, now: Instant) {
        let active = self.by_run.get(run_id).map(|permit| &self.active[permit].1);
        match active {
            Some(active) if attempt == 0 || attempt == active.attempt => {
                active.cancellation.cancel(CancelReason::User);
            }
            _ => {
                self.tombstones.push_back((now, run_id.clone(), attempt));
                if self.tombstones.len() > MAX_TOMBSTONES {
                    self.tombstones.pop_front();
                }
            }
        }
    }
}

fn unknown_function(function: &FunctionName) -> JobFailure {
    JobFailure::new(FailureKind::Internal, "internal error")
        .detailed(format!("Unknown function requested: {function}"))
}

fn input_too_large(bytes: usize, limit: ByteLimit) -> JobFailure {
    let max = limit.max().unwrap_or(u64::MAX);
    JobFailure::new(FailureKind::Validation, "invalid input")
        .detailed(format!("Input payload too large: {bytes} bytes (max {max})"))
}

fn busy(error_message: String) -> JobFailure {
    JobFailure::new(FailureKind::Retryable, "worker busy").detailed(error_message)
}

/// Hands out permits. Clones share the book.
#[derive(Clone)]
pub(crate) struct Admission {
    book: Arc<Mutex<Book>>,
    credential: Arc<dyn CredentialSource>,
    shutdown: Shutdown,
}

impl Admission {
    pub(crate) fn new(limits: Limits, credential: Arc<dyn CredentialSource>, shutdown: Shutdown) -> Self {
        Self { book: Arc::new(Mutex::new(Book::new(limits))), credential, shutdown }
    }

    /// Decides about a run, and takes a permit if it may start.
    pub(crate) fn admit(&self, run: &Applicant<'_>, cancellation: &Cancellation) -> Result<Permit, Refusal> {
        let mut book = self.book();
        book.judge(run, self.closed(), Instant::now())?;
        let id = book.enter(run, cancellation.clone());
        Ok(Permit { admission: self.clone(), id })
    }

    /// Tells a run to stop; if it is not running, it will be refused should it come within a minute.
    pub(crate) fn interrupt(&self, run_id: &RunId, attempt: i64) {
        self.book().interrupt(run_id, attempt, Instant::now());
    }

    /// Tells every run to stop.
    pub(crate) fn cancel_all(&self, reason: CancelReason) {
        for (_, active) in self.book().active.values() {
            active.cancellation.cancel(reason);
        }
    }

    /// Whether a run that comes now could be admitted.
    pub(crate) fn is_open(&self) -> bool {
        self.closed().is_none()
    }

    /// Why no run is admitted now.
    fn closed(&self) -> Option<&'static str> {
        if self.shutdown.phase() >= Phase::Draining {
            return Some("Worker is draining; refusing new tasks");
        }
        (!self.credential.usable(SystemTime::now())).then_some("The worker's credential has expired.")
    }

    /// The runs that were admitted and not yet answered.
    pub(crate) fn active(&self) -> Vec<(RunId, i64)> {
        let book = self.book();
        let runs = book.by_run.iter().map(|(run_id, permit)| (run_id, &book.active[permit].1));
        runs.filter(|(_, active)| !active.session)
            .map(|(run_id, active)| (run_id.clone(), active.attempt))
            .collect()
    }

    /// Starts the worker's drain.
    pub(crate) fn close(&self) {
        self.shutdown.drain();
    }

    /// The work that does not stop.
    pub(crate) fn zombies(&self) -> Zombies {
        self.book().zombies()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run, given back when dropped. Whatever a run started holds a clone (behind an `Arc`), so that work which
/// does not stop keeps its place.
pub(crate) struct Permit {
    admission: Admission,
    id: u64,
}

impl Permit {
    /// The run was answered.
    pub(crate) fn answered(&self) {
        self.admission.book().answered(self.id);
    }
}

impl Permit {
    /// The run was reported and does not stop. Returns how many such there are.
    pub(crate) fn abandoned(&self) -> u32 {
        let mut book = self.admission.book();
        if let Some((_, active)) = book.active.get_mut(&self.id) {
            active.zombie = true;
        }
        book.zombies().all
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.book().leave(self.id);
    }
}

#[cfg(test)]
mod tests;
