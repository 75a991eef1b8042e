//! Which runs hold a permit. Pure: nothing here waits, reads a clock, or tells a run anything.

use std::{
    cmp::Ordering,
    collections::{BTreeSet, VecDeque},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use gen_worker_core::{FailureKind, FunctionName, FunctionSpec, JobFailure, RunId};
use hashbrown::HashMap;

use super::{Applicant, Limits, Refusal, Stop, busy, input_too_large};
use crate::snapshot::Doing;

/// How long a cancel for an unknown run is remembered, so that a dispatch that it overtook ends `canceled`.
pub(super) const TOMBSTONE: Duration = Duration::from_secs(60);

/// Most tombstones kept; the oldest go first.
const MAX_TOMBSTONES: usize = 10_000;

/// Which permit, in the order of their giving.
pub(crate) type PermitId = u64;

/// A run that can be told to stop, and the permit it holds.
pub(super) type Running = (PermitId, Arc<dyn Stop>);

struct Active {
    run_id: RunId,
    attempt: i64,
    function: FunctionName,
    deadline: Option<Instant>,
    run: Arc<dyn Stop>,
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

/// What holds a permit.
pub(crate) struct Holder {
    pub run_id: RunId,
    pub attempt: i64,
    pub function: FunctionName,
    pub doing: Doing,
    /// When it had or has to stop; `None`: whenever it does.
    pub deadline: Option<Instant>,
    /// It was reported, and does not stop.
    pub zombie: bool,
    /// It was reported, and what it started goes on.
    pub answered: bool,
}

/// How many hold a permit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Runs and sessions that were not answered.
    pub in_flight: usize,
    /// Permits, those of runs that were answered and go on included.
    pub permits: usize,
    /// Of these, those of work that does not stop.
    pub zombies: usize,
}

/// How many places are taken, in the worker and in one function.
struct Places {
    all: u32,
    function: u32,
}

/// The state behind the permits.
pub(super) struct Book {
    limits: Limits,
    next_permit: PermitId,
    active: HashMap<PermitId, Active>,
    by_run: HashMap<RunId, PermitId>,
    by_function: HashMap<FunctionName, u32>,
    /// Of the runs that were not answered, soonest first.
    deadlines: BTreeSet<(Instant, PermitId)>,
    tombstones: VecDeque<(Instant, RunId, i64)>,
}

impl Book {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            next_permit: 0,
            active: HashMap::new(),
            by_run: HashMap::new(),
            by_function: HashMap::new(),
            deadlines: BTreeSet::new(),
            tombstones: VecDeque::new(),
        }
    }

    /// Decides, in the order of the contract (§3.2), but that a run which is running is never refused: what is sent again
    /// starts nothing, and a refusal beside its result would be a second one. `closed` says why no run is taken at all. A
    /// higher attempt of a run that is running supersedes it: returns whom.
    pub(super) fn judge(
        &mut self,
        applicant: &Applicant<'_>,
        closed: Option<&str>,
        now: Instant,
    ) -> Result<Option<Running>, Refusal> {
        let failed = |failure| Err(Refusal::Failed(failure));
        match self.of_run(applicant.run_id).map(|(_, active)| applicant.attempt.cmp(&active.attempt)) {
            Some(Ordering::Less) => return Err(Refusal::Stale),
            Some(Ordering::Equal) => return Err(Refusal::AlreadyRunning),
            Some(Ordering::Greater) | None => {}
        }
        if !self.limits.max_input.admits(applicant.payload_bytes as u64) {
            return failed(input_too_large(applicant.payload_bytes, self.limits.max_input));
        }
        if let Some(why) = closed {
            return failed(busy(why.to_owned()));
        }
        if self.take_tombstone(applicant, now) {
            return failed(JobFailure::new(FailureKind::Canceled, "canceled"));
        }
        let spec = applicant.spec;
        let mut places = Places { all: self.active.len() as u32, function: self.running(&spec.name) };
        let mut superseded = None;
        if let Some((permit, active)) = self.of_run(applicant.run_id) {
            // Its place is the new attempt's: it stops, and nobody waits for its result.
            places.all -= 1;
            places.function -= u32::from(active.function == spec.name);
            superseded = Some((permit, active.run.clone()));
        }
        match self.full(spec, places) {
            Some(failure) => failed(failure),
            None => Ok(superseded),
        }
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

    fn take_tombstone(&mut self, applicant: &Applicant<'_>, now: Instant) -> bool {
        self.tombstones.retain(|(since, ..)| now.duration_since(*since) < TOMBSTONE);
        let covers = |(_, id, attempt): &(Instant, RunId, i64)| {
            id == applicant.run_id && (*attempt == applicant.attempt || *attempt == 0)
        };
        let found = self.tombstones.iter().position(covers);
        found.map(|at| self.tombstones.remove(at)).is_some()
    }

    /// Gives a permit. Says whether no other deadline is sooner than this run's.
    pub(super) fn enter(&mut self, applicant: &Applicant<'_>, run: Arc<dyn Stop>) -> (PermitId, bool) {
        let permit = self.next_permit;
        self.next_permit += 1;
        let active = Active {
            run_id: applicant.run_id.clone(),
            attempt: applicant.attempt,
            function: applicant.spec.name.clone(),
            deadline: applicant.deadline,
            run,
            zombie: false,
            session: applicant.spec.is_realtime(),
        };
        *self.by_function.entry(active.function.clone()).or_default() += 1;
        self.by_run.insert(active.run_id.clone(), permit);
        self.active.insert(permit, active);
        let Some(deadline) = applicant.deadline else {
            return (permit, false);
        };
        self.deadlines.insert((deadline, permit));
        (permit, self.deadlines.first() == Some(&(deadline, permit)))
    }

    /// The run was answered: the same run may be sent again. Its permit stays taken until what it started has ended.
    pub(super) fn answered(&mut self, permit: PermitId) {
        let Some(active) = self.active.get(&permit) else { return };
        if self.by_run.get(&active.run_id) == Some(&permit) {
            self.by_run.remove(&active.run_id);
        }
        if let Some(deadline) = active.deadline {
            self.deadlines.remove(&(deadline, permit));
        }
    }

    /// What the run started has ended.
    pub(super) fn leave(&mut self, permit: PermitId) {
        self.answered(permit);
        if let Some(active) = self.active.remove(&permit)
            && let Some(running) = self.by_function.get_mut(&active.function)
        {
            *running -= 1;
        }
    }

    /// Whether what holds this permit goes on.
    pub(super) fn holds(&self, permit: PermitId) -> bool {
        self.active.contains_key(&permit)
    }

    /// The run was reported and does not stop. Returns how many such there are; `None`: it has ended after all.
    pub(super) fn abandon(&mut self, permit: PermitId) -> Option<u32> {
        self.active.get_mut(&permit)?.zombie = true;
        Some(self.zombies().all)
    }

    pub(super) fn list(&self) -> Vec<Holder> {
        let holder = |(permit, active): (&PermitId, &Active)| Holder {
            run_id: active.run_id.clone(),
            attempt: active.attempt,
            function: active.function.clone(),
            doing: active.run.doing(),
            deadline: active.deadline,
            zombie: active.zombie,
            answered: self.by_run.get(&active.run_id) != Some(permit),
        };
        self.active.iter().map(holder).collect()
    }

    pub(super) fn held(&self) -> Held {
        let zombies = self.active.values().filter(|active| active.zombie).count();
        Held { in_flight: self.by_run.len(), permits: self.active.len(), zombies }
    }

    pub(super) fn zombies(&self) -> Zombies {
        let mut zombies = Zombies::default();
        for active in self.active.values().filter(|active| active.zombie) {
            zombies.all += 1;
            *zombies.by_function.entry(active.function.clone()).or_default() += 1;
        }
        zombies
    }

    /// The run that is to stop; one that is not running is refused should it come within a minute.
    pub(super) fn interrupt(&mut self, run_id: &RunId, attempt: i64, now: Instant) -> Option<Running> {
        match self.of_run(run_id) {
            Some((permit, active)) if attempt == 0 || attempt == active.attempt => {
                Some((permit, active.run.clone()))
            }
            _ => {
                self.tombstones.push_back((now, run_id.clone(), attempt));
                if self.tombstones.len() > MAX_TOMBSTONES {
                    self.tombstones.pop_front();
                }
                None
            }
        }
    }

    /// When the next run has to stop; `None`: none has to.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The runs whose time is over.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Vec<Running> {
        let mut overdue = Vec::new();
        while let Some((deadline, permit)) = self.deadlines.first().copied().filter(|first| first.0 <= now) {
            self.deadlines.remove(&(deadline, permit));
            overdue.extend(self.active.get(&permit).map(|active| (permit, active.run.clone())));
        }
        overdue
    }

    /// Everything that holds a permit.
    pub(super) fn all(&self) -> Vec<Running> {
        self.active.iter().map(|(permit, active)| (*permit, active.run.clone())).collect()
    }

    /// The runs that were admitted and not yet answered.
    pub(super) fn unanswered(&self) -> Vec<(RunId, i64)> {
        let runs = self.by_run.values().map(|permit| &self.active[permit]).filter(|active| !active.session);
        runs.map(|active| (active.run_id.clone(), active.attempt)).collect()
    }

    pub(super) fn is_running(&self, run_id: &RunId, attempt: i64) -> bool {
        self.of_run(run_id).is_some_and(|(_, active)| active.attempt == attempt)
    }

    fn of_run(&self, run_id: &RunId) -> Option<(PermitId, &Active)> {
        self.by_run.get(run_id).map(|permit| (*permit, &self.active[permit]))
    }
}
