//! What the tenant does before the first run and after the last.
//!
//! Set-ups run at the same time, on the user runtime, while the worker connects: until all are done every function is
//! loading, and a run that comes waits. One that fails ends the worker. Tear-downs run when the last result was handed over.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use gen_worker_core::{
    Extensions, FailureKind, HookBody, JobFailure, SetUp, StateType, TearDown, WorkerError,
};
use tokio::{
    runtime::Handle,
    sync::{SetOnce, watch},
    task::{Id, JoinError, JoinSet},
    time::timeout,
};
use tracing::{error, info, warn};

use crate::shutdown::Shutdown;

/// The hooks, and the names in errors of what they need.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub set_ups: Vec<SetUp>,
    pub tear_downs: Vec<TearDown>,
}

impl Hooks {
    /// The values that there will be: those that were given, and those that are made.
    ///
    /// # Errors
    /// A value is made twice, or a tear-down takes one that nothing makes.
    pub(crate) fn check(&self, given: &Extensions) -> Result<(), HookError> {
        let mut made: Vec<(StateType, &str)> = Vec::new();
        for set_up in &self.set_ups {
            let Some(state) = set_up.makes() else { continue };
            let other = made.iter().find(|(other, _)| *other == state).map(|(_, name)| *name);
            let first = other.or_else(|| given.has(state).then_some("the builder's `state`"));
            if let Some(first) = first {
                return Err(HookError::MadeTwice { state, first: first.to_owned(), second: set_up.name() });
            }
            made.push((state, set_up.name()));
        }
        for tear_down in &self.tear_downs {
            if let Some(state) = tear_down.takes().iter().find(|state| !self.makes(given, **state)) {
                return Err(HookError::NotMade { taker: tear_down.name().to_owned(), state: *state });
            }
        }
        Ok(())
    }

    /// Whether this value was given, or will be made.
    pub(crate) fn makes(&self, given: &Extensions, state: StateType) -> bool {
        given.has(state) || self.set_ups.iter().any(|set_up| set_up.makes() == Some(state))
    }
}

/// Why hooks, and functions that take what they make, do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// Two make the same value.
    #[error(
        "both `{first}` and `{second}` make the {state}: make one value of both, or give each a type of its own"
    )]
    MadeTwice {
        /// The type.
        state: StateType,
        /// One of them.
        first: String,
        /// The other.
        second: &'static str,
    },
    /// Something takes a value that there will not be.
    #[error(
        "`{taker}` takes {state}, and nothing makes it: return it from a `#[worker_setup]` function, or give it to the \
         builder with `state`"
    )]
    NotMade {
        /// A function or a tear-down.
        taker: String,
        /// The type.
        state: StateType,
    },
}

/// Why a worker was not set up.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SetUpFailure {
    /// The set-up returned an error.
    #[error("the set-up `{name}` failed: {reason}")]
    Failed {
        /// Its name.
        name: &'static str,
        /// What it said, and what that came of.
        reason: String,
    },
    /// The set-up panicked; where and why is in the log.
    #[error("the set-up `{name}` panicked")]
    Panicked {
        /// Its name.
        name: &'static str,
    },
    /// It took too long.
    #[error("not set up within {limit:?}, waiting for {names}: WORKER_SETUP_TIMEOUT_SECONDS is the limit")]
    TimedOut {
        /// Those that were not done.
        names: String,
        /// The limit.
        limit: Duration,
    },
}

/// The application's values, once there are all of them. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Prepared(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// As far as they are made.
    collected: Mutex<Extensions>,
    /// `None`: they will never all be there.
    ready: SetOnce<Option<Arc<Extensions>>>,
    failure: OnceLock<SetUpFailure>,
}

impl Prepared {
    /// The values that were given; there are no more if `is_all`.
    pub(crate) fn new(given: Extensions, is_all: bool) -> Self {
        let ready = SetOnce::new_with(is_all.then(|| Some(Arc::new(given.clone()))));
        Self(Arc::new(Shared { collected: Mutex::new(given), ready, failure: OnceLock::new() }))
    }

    /// Whether runs still have to wait for them.
    pub(crate) fn is_pending(&self) -> bool {
        !matches!(self.0.ready.get(), Some(Some(_)))
    }

    /// The values.
    ///
    /// # Panics
    /// They are pending.
    pub(crate) fn state(&self) -> Arc<Extensions> {
        self.0.ready.get().cloned().flatten().expect("no function is called before the set-ups are done")
    }

    /// Waits for the values.
    ///
    /// # Errors
    /// The worker leaves without them: another one may take the run.
    pub(crate) async fn wait(&self) -> Result<(), JobFailure> {
        match self.0.ready.wait().await {
            Some(_) => Ok(()),
            None => Err(JobFailure::new(FailureKind::Retryable, "worker busy")
                .detailed("The worker could not be set up; refusing tasks")),
        }
    }

    /// Why the worker leaves; `None`: not for this.
    pub(crate) fn failure(&self) -> Option<SetUpFailure> {
        self.0.failure.get().cloned()
    }

    /// Runs the set-ups, all at the same time, and says on `news` when functions wait for them no more. A failure is told to
    /// the runs that wait, and ends the worker. `limit` is for all of them together; `None`: however long they take.
    ///
    /// # Cancel safety
    /// Dropping the future stops async set-ups; a blocking one goes on, and what it makes is nobody's.
    pub(crate) async fn set_up(&self, set_ups: Vec<SetUp>, limit: Option<Duration>, way: Way<'_>) {
        if self.0.ready.initialized() {
            return;
        }
        match self.carry_out(set_ups, limit, way.users).await {
            Ok(()) => {
                // It is set here alone.
                let _ = self.0.ready.set(Some(self.collected()));
                way.news.send_replace(());
            }
            Err(failure) => {
                error!(error = %failure, "the worker cannot be set up: it leaves");
                let _ = self.0.failure.set(failure);
                let _ = self.0.ready.set(None);
                way.shutdown.drain();
            }
        }
    }

    async fn carry_out(
        &self,
        set_ups: Vec<SetUp>,
        limit: Option<Duration>,
        users: &Handle,
    ) -> Result<(), SetUpFailure> {
        let mut running = Running::new(users);
        for set_up in set_ups {
            running.start(set_up.name(), set_up.into_body(), ());
        }
        let done = async {
            while let Some((name, made)) = running.next().await {
                let made = made.map_err(|_| SetUpFailure::Panicked { name })?;
                self.collect(made.map_err(|error| SetUpFailure::Failed { name, reason: reason(error) })?);
            }
            Ok(())
        };
        match limit {
            None => done.await,
            Some(limit) => match timeout(limit, done).await {
                Ok(done) => done,
                Err(_) => Err(SetUpFailure::TimedOut { names: running.names(), limit }),
            },
        }
    }

    /// Runs the tear-downs, all at the same time. What is not done within the limit is left behind.
    pub(crate) async fn tear_down(&self, tear_downs: Vec<TearDown>, limit: Duration, users: &Handle) {
        let (state, mut running) = (self.collected(), Running::new(users));
        let is_made = |tear_down: &TearDown| tear_down.takes().iter().all(|wanted| state.has(*wanted));
        for tear_down in tear_downs.into_iter().filter(is_made) {
            running.start(tear_down.name(), tear_down.into_body(), state.clone());
        }
        let done = async {
            while let Some((name, done)) = running.next().await {
                match done {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => error!(name, error = reason(error), "a tear-down failed"),
                    Err(_) => error!(name, "a tear-down panicked"),
                }
            }
        };
        if timeout(limit, done).await.is_err() {
            let (names, limit_ms) = (running.names(), limit.as_millis() as u64);
            warn!(names, limit_ms, "tear-downs were not done in time and are left behind");
        }
    }

    fn collect(&self, made: impl FnOnce(&mut Extensions)) {
        made(&mut self.0.collected.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn collected(&self) -> Arc<Extensions> {
        Arc::new(self.0.collected.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What a set-up is done with: where user code runs, who is told to leave when it fails, and who that it is done.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub users: &'a Handle,
    pub shutdown: &'a Shutdown,
    pub news: &'a watch::Sender<()>,
}

/// Hooks that run, each as a task or on a thread of its own.
struct Running<'a, O> {
    users: &'a Handle,
    tasks: JoinSet<O>,
    names: HashMap<Id, (&'static str, Instant)>,
}

impl<'a, O: Send + 'static> Running<'a, O> {
    fn new(users: &'a Handle) -> Self {
        Self { users, tasks: JoinSet::new(), names: HashMap::new() }
    }

    fn start<I: Send + 'static>(&mut self, name: &'static str, body: HookBody<I, O>, takes: I) {
        let task = match body {
            // Made there as well: a panic on the way to the future is its own.
            HookBody::Async(body) => self.tasks.spawn_on(async move { body(takes).await }, self.users),
            HookBody::Blocking(body) => self.tasks.spawn_blocking_on(move || body(takes), self.users),
        };
        self.names.insert(task.id(), (name, Instant::now()));
    }

    /// The next one that ends, and how; `None`: all have.
    async fn next(&mut self) -> Option<(&'static str, Result<O, JoinError>)> {
        let (id, ended) = match self.tasks.join_next_with_id().await? {
            Ok((id, ended)) => (id, Ok(ended)),
            Err(error) => (error.id(), Err(error)),
        };
        let (name, since) = self.names.remove(&id).expect("each has a name");
        info!(name, elapsed_ms = since.elapsed().as_millis() as u64, "hook ended");
        Some((name, ended))
    }

    /// Those that have not ended.
    fn names(&self) -> String {
        let mut names: Vec<_> = self.names.values().map(|(name, _)| format!("`{name}`")).collect();
        names.sort_unstable();
        names.join(", ")
    }
}

/// The error and its causes; that it is internal says nothing to whoever starts a worker.
fn reason(error: WorkerError) -> String {
    let chain = JobFailure::from(error).chain();
    chain.strip_prefix("internal error: ").map_or_else(|| chain.clone(), str::to_owned)
}
