//! The one owner of runs and workers: everything that happens goes through here, under one lock that is held for
//! moments only.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use url::Url;

use crate::{
    auth::Now,
    dispatch::{Load, plan},
    events::Batch,
    queue::{Canceled, FileScope, Queue, Refusal},
    run::{RunError, RunRequest, RunView},
    workers::{Outbound, Session},
};

/// The extensions honoured here.
const FEATURES: [&str; 6] =
    ["result-ack", "run-accepted", "attempt", "active-runs", "drain", "loading-functions"];

/// How long to sleep when nothing is due; any happening ends the sleep.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs and workers, and the rule that brings them together.
#[derive(Debug)]
pub(crate) struct Broker {
    state: Mutex<State>,
    changed: Notify,
    worker_grace: Duration,
    file_base_url: Url,
    /// Names this process, so that a worker can tell a restart.
    scheduler_id: String,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
}

impl Broker {
    pub(crate) fn new(history: usize, worker_grace: Duration, file_base_url: Url) -> Self {
        Self {
            state: Mutex::new(State {
                queue: Queue::new(history),
                sessions: BTreeMap::new(),
                next_session: 1,
            }),
            changed: Notify::new(),
            worker_grace,
            file_base_url,
            scheduler_id: uuid::Uuid::new_v4().to_string(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out runs until told to stop.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        loop {
            let next = self.hand_out(Now::read());
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(next) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Gives up on lost workers, starts what can start, and says when to look again.
    fn hand_out(&self, now: Now) -> Instant {
        let mut guard = self.state();
        let State { queue, sessions, .. } = &mut *guard;
        queue.expire(self.worker_grace, now);
        let open = sessions.values().filter(|session| session.is_open() && !session.draining);
        let mut loads: Vec<_> = open
            .map(|session| Load {
                session: session.id,
                resources: &session.resources,
                running: queue.load(session.id),
            })
            .collect();
        for (run_id, session) in plan(queue.ready(now.at), &mut loads) {
            self.start(queue, &sessions[&session], &run_id, now);
        }
        queue.next_change(self.worker_grace, now.at).unwrap_or(now.at + IDLE)
    }

    fn start(&self, queue: &mut Queue, session: &Session, run_id: &str, now: Now) {
        let mut request = queue.start(run_id, session.sender(), now);
        debug!(run_id, session = session.id, attempt = request.attempt, "run handed out");
        request.file_base_url = self.file_base_url.as_str().trim_end_matches('/').to_owned();
        if !session.speaks("attempt") {
            request.attempt = 0;
        }
        session.send(Msg::RunRequest(request));
    }

    /// Takes in a worker and returns its session's number.
    pub(crate) fn join(
        &self,
        registration: v1::WorkerRegistration,
        outbound: Outbound,
        closing: CancellationToken,
    ) -> u64 {
        let mut state = self.state();
        let id = state.next_session;
        state.next_session += 1;
        let resources = registration.resources.unwrap_or_default();
        info!(session = id, worker_id = %resources.worker_id, "worker connected");
        let session = Session::new(id, resources, outbound, closing);
        if !session.resources.features.is_empty() {
            session.send(Msg::SchedulerHello(v1::SchedulerHello {
                features: FEATURES.map(str::to_owned).into(),
                scheduler_id: self.scheduler_id.clone(),
            }));
        }
        for active in registration.active_runs {
            // What the worker runs for nobody, or for somebody who gave up on it, it may stop.
            if !state.queue.adopt(&active, session.sender()) {
                session.send(Msg::InterruptRunCmd(v1::InterruptTaskCommand {
                    run_id: active.run_id,
                    attempt: active.attempt,
                }));
            }
        }
        state.sessions.insert(id, session);
        self.changed.notify_one();
        id
    }

    /// Forgets a worker's stream; its runs wait for it.
    pub(crate) fn leave(&self, session: u64) {
        let mut state = self.state();
        if state.sessions.remove(&session).is_some() {
            info!(session, "worker disconnected");
            state.queue.lose(session, Instant::now());
            self.changed.notify_one();
        }
    }

    /// Takes a message from a worker.
    pub(crate) fn hear(&self, session: u64, msg: Msg, now: Now) {
        let mut guard = self.state();
        let State { queue, sessions, .. } = &mut *guard;
        let Some(session) = sessions.get_mut(&session) else {
            return;
        };
        match msg {
            Msg::WorkerRegistration(registration) => {
                session.seen(now.at);
                session.resources = registration.resources.unwrap_or_default();
            }
            Msg::RunResult(result) => settle(queue, session, result, now),
            Msg::RunAccepted(accepted) => queue.accept(&accepted, session.sender()),
            // What is merely said sets no run free.
            Msg::WorkerEvent(event) if event.run_id.is_empty() => return session.remember(event),
            Msg::WorkerEvent(event) => return queue.event(event, session.sender()),
            _ => debug!(session = session.id, "message ignored"),
        }
        self.changed.notify_one();
    }

    /// Takes a run; true if it is new, false if the same was taken before.
    pub(crate) fn submit(&self, run_id: &str, request: RunRequest) -> Result<bool, Refusal> {
        let new = self.state().queue.submit(run_id, request, Now::read())?;
        self.changed.notify_one();
        Ok(new)
    }

    /// Asks for a run's end; `None`: there is no such run.
    pub(crate) fn cancel(&self, run_id: &str) -> Option<Canceled> {
        let mut state = self.state();
        let canceled = state.queue.cancel(run_id, Now::read())?;
        if let Canceled::Running { session, attempt } = canceled
            && let Some(session) = state.sessions.get(&session)
        {
            session.send(Msg::InterruptRunCmd(v1::InterruptTaskCommand {
                run_id: run_id.to_owned(),
                attempt: if session.speaks("attempt") { attempt } else { 0 },
            }));
        }
        Some(canceled)
    }

    pub(crate) fn view(&self, run_id: &str) -> Option<RunView> {
        self.state().queue.view(run_id)
    }

    pub(crate) fn list(&self) -> Vec<RunView> {
        self.state().queue.list()
    }

    /// See [`Queue::outcome`].
    pub(crate) fn outcome(&self, run_id: &str) -> Option<Option<Result<bytes::Bytes, RunError>>> {
        self.state().queue.outcome(run_id)
    }

    /// A signal that a run said something; `None`: there is no such run.
    pub(crate) fn watch(&self, run_id: &str) -> Option<watch::Receiver<()>> {
        Some(self.state().queue.log(run_id)?.watch())
    }

    /// What a run said after an event, and how it stands if it has ended; `None`: there is no such run.
    pub(crate) fn events(&self, run_id: &str, after: u64) -> Option<(Batch, Option<(u64, RunView)>)> {
        let state = self.state();
        let log = state.queue.log(run_id)?;
        let ended = state.queue.outcome(run_id)?.is_some();
        let end = ended.then(|| state.queue.view(run_id)).flatten();
        Some((log.after(after), end.map(|view| (log.last_id() + 1, view))))
    }

    /// Whose files a token opens; `None`: none.
    pub(crate) fn file_scope(&self, token: &str) -> Option<FileScope> {
        self.state().queue.file_scope(token, Instant::now())
    }

    /// The workers as the API shows them.
    pub(crate) fn workers(&self) -> Value {
        let state = self.state();
        let now = Instant::now();
        let running = |session: &Session| state.queue.load(session.id).values().sum();
        let views = state.sessions.values().map(|session| session.view(running(session), now));
        views.collect()
    }

    /// Tells every stream of a worker to finish and leave. `None`: there is no such worker; false: it cannot be told.
    pub(crate) fn drain(&self, worker_id: &str, deadline: Duration) -> Option<bool> {
        let mut state = self.state();
        let named = state.sessions.values_mut();
        named
            .filter(|session| session.resources.worker_id == worker_id)
            .map(|session| session.drain(deadline))
            .reduce(|a, b| a | b)
    }
}

/// Stores a result, then tells the worker that it may forget it; a stale one too.
fn settle(queue: &mut Queue, session: &Session, result: v1::TaskExecutionResult, now: Now) {
    let ack = v1::ResultAck { run_id: result.run_id.clone(), attempt: result.attempt };
    queue.settle(result, session.sender(), session.speaks("run-accepted"), now);
    if session.speaks("result-ack") {
        session.send(Msg::ResultAck(ack));
    }
}
