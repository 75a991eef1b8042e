//! Brings runs and workers together: what the queue leases goes to the workers that are connected here, and what they
//! say goes to the queue. Which worker has which run is known here; what becomes of a run, there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use url::Url;

use crate::{
    auth::Now,
    dispatch::{Load, best},
    peers::{EVERY, Peers, Presence},
    queue::{Canceled, FileScope, Heard, Lease, Outcome, Queue, Refusal, Unavailable, record::Record},
    realtime::{self, Conversation, Line, NoSession, Opening},
    run::{RunRequest, RunView},
    stats::Stats,
    workers::{Outbound, Session},
};

/// The extensions honoured here.
const FEATURES: [&str; 7] =
    ["result-ack", "run-accepted", "attempt", "active-runs", "drain", "loading-functions", "model-memory"];

/// How long nothing is leased after the queue could not say what was.
const LEASE_AGAIN: Duration = Duration::from_secs(1);

/// Runs and workers, and the rule that brings them together.
#[derive(Debug)]
pub(crate) struct Broker {
    queue: Arc<dyn Queue>,
    sessions: Mutex<Sessions>,
    changed: Notify,
    stats: Stats,
    /// Without a slash at the end.
    file_base_url: String,
    /// Where workers reach this process; `None`: no other orchestrator can be told.
    address: Option<String>,
    peers: Mutex<Peers>,
    /// Names this process, so that a worker can tell a restart.
    scheduler_id: String,
}

#[derive(Debug)]
struct Sessions {
    open: BTreeMap<u64, Session>,
    next: u64,
}

impl Sessions {
    fn loads(&self, of: impl Fn(&Session) -> bool) -> Vec<Load> {
        self.open.values().filter(|session| of(session)).map(Session::load).collect()
    }

    fn conversations(&self) -> impl Iterator<Item = &Conversation> {
        self.open.values().flat_map(Session::conversations)
    }

    /// The session whose worker would take the fewest runs along.
    fn idlest(&mut self) -> Option<(usize, &mut Session)> {
        let can = self.open.values_mut().filter_map(|session| Some((session.takes_along()?, session)));
        can.min_by_key(|(runs, _)| *runs)
    }

    /// The session that has a run, at this attempt.
    fn with(&self, run_id: &str, attempt: i64) -> Option<&Session> {
        self.open.values().find(|session| session.has(run_id, attempt))
    }
}

impl Broker {
    pub(crate) fn new(queue: Arc<dyn Queue>, file_base_url: &Url, address: Option<String>) -> Self {
        Self {
            queue,
            sessions: Mutex::new(Sessions { open: BTreeMap::new(), next: 1 }),
            changed: Notify::new(),
            stats: Stats::default(),
            file_base_url: file_base_url.as_str().trim_end_matches('/').to_owned(),
            address,
            peers: Mutex::default(),
            scheduler_id: uuid::Uuid::new_v4().to_string(),
        }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands out runs until told to stop.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        tokio::select! {
            () = self.queue.run() => {}
            () = self.hand_out() => {}
            () = self.pass_on() => {}
            () = self.even_out() => {}
            () = stop.cancelled() => {}
        }
        self.queue.close().await;
    }

    /// Starts what can start, again and again.
    async fn hand_out(&self) {
        loop {
            let mut loads = self.loads(Session::takes_runs);
            match self.queue.lease(&mut loads).await {
                Ok(leases) if leases.is_empty() => tokio::select! {
                    () = self.changed.notified() => {}
                    () = self.queue.changed() => {}
                },
                Ok(leases) => {
                    for lease in leases {
                        self.start(lease).await;
                    }
                }
                Err(Unavailable) => sleep(LEASE_AGAIN).await,
            }
        }
    }

    /// Interrupts what others asked to stop.
    async fn pass_on(&self) {
        loop {
            let (run_id, attempt) = self.queue.interrupted().await;
            self.interrupt(&run_id, attempt);
        }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the other orchestrators of this one, hears of them, and sends a worker on while there are too many here.
    async fn even_out(&self) {
        let mut turn = interval(EVERY);
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                said = self.queue.announced() => self.peers().hear(said, Instant::now()),
                _ = turn.tick() => {
                    let mut sessions = self.sessions();
                    let mine = sessions.open.len();
                    self.announce(Some(mine));
                    let (mut peers, now) = (self.peers(), Instant::now());
                    if let Some((_, idlest)) = sessions.idlest()
                        && let Some(address) = peers.relief(mine, now)
                    {
                        peers.sent(&idlest.resources.worker_id, now);
                        info!(session = idlest.id, address, "worker sent on: there are fewer");
                        idlest.send_on(address);
                    }
                }
            }
        }
    }

    fn announce(&self, workers: Option<usize>) {
        if let Some(address) = self.address.clone() {
            self.queue.announce(Presence { scheduler_id: self.scheduler_id.clone(), address, workers });
        }
    }

    /// Sends all workers to other orchestrators, as far as there are any, and has none sent here. Their streams end with this.
    pub(crate) fn depart(&self) {
        self.announce(None);
        for session in self.sessions().open.values_mut() {
            if let Some(address) = self.peers().place(Instant::now()) {
                session.send_on(address);
            }
        }
    }

    /// Where a worker is sent whose stream ends; `None`: nowhere in particular.
    pub(crate) fn sent_to(&self, session: u64) -> Option<String> {
        Some(self.sessions().open.get(&session)?.sent_to()?.to_owned())
    }

    fn interrupt(&self, run_id: &str, attempt: i64) {
        if let Some(session) = self.sessions().with(run_id, attempt) {
            session.send(Msg::InterruptRunCmd(v1::InterruptTaskCommand {
                run_id: run_id.to_owned(),
                attempt: if session.speaks("attempt") { attempt } else { 0 },
            }));
        }
    }

    fn loads(&self, of: impl Fn(&Session) -> bool) -> Vec<Load> {
        self.sessions().loads(of)
    }

    async fn start(&self, Lease { session, mut request }: Lease) {
        request.file_base_url.clone_from(&self.file_base_url);
        let (run_id, attempt) = (request.run_id.clone(), request.attempt);
        debug!(run_id, session, attempt, "run handed out");
        let sent = match self.sessions().open.get_mut(&session) {
            Some(session) => {
                session.start(request);
                true
            }
            None => false,
        };
        if !sent {
            self.queue.lose(vec![(run_id, attempt)]).await;
        }
    }

    /// Takes in a worker and returns its session's number. Where it cannot be known which of the runs that the worker
    /// says it has are still its, it is not taken in: it goes on with all of them, and comes back.
    pub(crate) async fn join(
        &self,
        registration: v1::WorkerRegistration,
        outbound: Outbound,
        closing: CancellationToken,
    ) -> Result<u64, Unavailable> {
        let id = {
            let mut sessions = self.sessions();
            sessions.next += 1;
            sessions.next - 1
        };
        let resources = registration.resources.unwrap_or_default();
        let worker_id = resources.worker_id.clone();
        info!(session = id, worker_id, "worker connected");
        let mut session = Session::new(id, resources, outbound, closing);
        session.stays = self.peers().is_back(&worker_id, Instant::now());
        if !session.resources.features.is_empty() {
            session.send(Msg::SchedulerHello(v1::SchedulerHello {
                features: FEATURES.map(str::to_owned).into(),
                scheduler_id: self.scheduler_id.clone(),
            }));
        }
        for active in registration.active_runs {
            let adopted = match self.queue.adopt(&active, &worker_id).await {
                Ok(adopted) => adopted,
                Err(unavailable) => {
                    self.queue.lose(session.into_runs()).await;
                    return Err(unavailable);
                }
            };
            match adopted {
                Some(function) => {
                    self.sessions().open.values_mut().for_each(|other| other.forget(&active.run_id));
                    session.adopt(active, function);
                }
                // What the worker runs for nobody, or for somebody who gave up on it, it may stop.
                None => session.send(Msg::InterruptRunCmd(v1::InterruptTaskCommand {
                    run_id: active.run_id,
                    attempt: active.attempt,
                })),
            }
        }
        self.sessions().open.insert(id, session);
        self.changed.notify_one();
        Ok(id)
    }

    /// Forgets a worker's stream; its runs wait for it.
    pub(crate) async fn leave(&self, session: u64) {
        let Some(gone) = self.sessions().open.remove(&session) else { return };
        info!(session, "worker disconnected");
        self.queue.lose(gone.into_runs()).await;
    }

    /// Takes a message from a worker. What it returns must be seen through; others may be heard meanwhile.
    pub(crate) fn hear<'a>(&'a self, id: u64, msg: Msg, now: Now) -> Option<BoxFuture<'a, ()>> {
        let mut sessions = self.sessions();
        let session = sessions.open.get_mut(&id)?;
        match msg {
            Msg::WorkerRegistration(registration) => {
                session.seen(now.at);
                session.resources = Arc::new(registration.resources.unwrap_or_default());
            }
            Msg::RunResult(result) => {
                let accepted = session.finish(&result.run_id, result.attempt);
                let worker_id = session.resources.worker_id.clone();
                self.changed.notify_one();
                return Some(Box::pin(self.settle(id, result, worker_id, accepted)));
            }
            // Neither this nor what is merely said sets a run free.
            Msg::RunAccepted(accepted) => {
                session.accept(&accepted);
                return None;
            }
            Msg::RealtimeFrame(frame) => {
                session.hear(frame);
                return None;
            }
            Msg::RealtimeCloseCmd(close) => session.hang_up(close),
            Msg::WorkerEvent(event) if event.run_id.is_empty() => {
                session.remember(event);
                return None;
            }
            Msg::WorkerEvent(event) => {
                if session.has(&event.run_id, 0) {
                    self.queue.event(event);
                }
                return None;
            }
            _ => debug!(session = session.id, "message ignored"),
        }
        self.changed.notify_one();
        None
    }

    /// Stores a result, then tells the worker that it may forget it; a stale one too.
    async fn settle(&self, id: u64, result: v1::TaskExecutionResult, worker_id: String, accepted: bool) {
        let ack = v1::ResultAck { run_id: result.run_id.clone(), attempt: result.attempt };
        if let Err(error) = self.queue.settle(result, &worker_id, accepted).await {
            // The worker keeps it and says it again on its next stream.
            warn!(run_id = ack.run_id, %error, "result not stored");
            self.sessions().open.get(&id).inspect(|session| session.close());
            // The session has it no more. Of an attempt that is not counted, the queue's own time decides.
            self.queue.lose(vec![(ack.run_id, ack.attempt)]).await;
            return;
        }
        if let Some(session) = self.sessions().open.get(&id)
            && session.speaks("result-ack")
        {
            session.send(Msg::ResultAck(ack));
        }
    }

    /// Opens a realtime session at a worker that has a place for it. `most`: how many a tenant may have.
    pub(crate) fn converse(
        &self,
        opening: Opening,
        most: Option<usize>,
    ) -> Result<(Line, realtime::Heard), NoSession> {
        let mut sessions = self.sessions();
        let of_tenant = sessions.conversations().filter(|open| open.tenant_id == opening.tenant_id).count();
        if most.is_some_and(|most| of_tenant >= most) {
            return Err(NoSession::TenantFull);
        }
        let mut loads = sessions.loads(Session::takes_runs);
        let chosen = best(&opening.function, &[], &mut loads).ok_or(NoSession::NoWorker)?.session;
        let session = sessions.open.get_mut(&chosen).ok_or(NoSession::NoWorker)?;
        Ok(session.converse(opening, &self.file_base_url))
    }

    /// Takes a run; true if it is new, false if the same was taken before.
    pub(crate) async fn submit(&self, run_id: &str, request: RunRequest) -> Result<bool, Refusal> {
        let taken = self.queue.enqueue(run_id, request).await;
        self.stats.submitted(&taken);
        taken
    }

    /// Asks for a run's end; `None`: there is no such run.
    pub(crate) async fn cancel(&self, run_id: &str) -> Result<Option<Canceled>, Unavailable> {
        let canceled = self.queue.cancel(run_id).await?;
        if let Some(Canceled::Running { attempt }) = canceled {
            self.interrupt(run_id, attempt);
        }
        Ok(canceled)
    }

    /// See [`Queue::view`].
    pub(crate) async fn view(&self, run_id: &str) -> Result<Option<RunView>, Unavailable> {
        self.queue.view(run_id).await
    }

    /// See [`Queue::list`].
    pub(crate) async fn list(
        &self,
        tenant_id: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RunView>, Unavailable> {
        self.queue.list(tenant_id, limit).await
    }

    /// See [`Queue::outcome`].
    pub(crate) async fn outcome(&self, run_id: &str) -> Result<Option<Option<Outcome>>, Unavailable> {
        self.queue.outcome(run_id).await
    }

    /// A signal that a run said something; `None`: there is no such run.
    pub(crate) async fn watch(&self, run_id: &str) -> Result<Option<watch::Receiver<()>>, Unavailable> {
        self.queue.watch(run_id).await
    }

    /// What a run said after an event, and how it stands if it has ended; `None`: there is no such run.
    pub(crate) async fn events(&self, run_id: &str, after: u64) -> Result<Option<Heard>, Unavailable> {
        self.queue.events(run_id, after).await
    }

    /// Whose files a token opens; `None`: none.
    pub(crate) async fn file_scope(&self, token: &str) -> Result<Option<FileScope>, Unavailable> {
        let session = Record::run_of_token(token)
            .and_then(|id| self.sessions().open.values().find_map(|session| session.file_scope(id, token)));
        match session {
            Some(scope) => Ok(Some(scope)),
            None => self.queue.file_scope(token).await,
        }
    }

    /// The workers as the API shows them.
    pub(crate) fn workers(&self) -> Value {
        let now = Instant::now();
        self.sessions().open.values().map(|session| session.view(now)).collect()
    }

    /// Whether runs can be taken, as was seen last.
    pub(crate) fn is_ready(&self) -> Result<(), Unavailable> {
        self.queue.is_ready().then_some(()).ok_or(Unavailable)
    }

    /// What Prometheus and an autoscaler are told; of a queue that cannot be asked, nothing.
    pub(crate) async fn metrics(&self) -> String {
        let functions = self.queue.stats().await.ok();
        let loads = self.loads(|_| true);
        let talking: Vec<_> = self.sessions().conversations().map(|open| open.function.clone()).collect();
        let peers = self.peers().count(Instant::now());
        self.stats.render(functions.as_ref(), &loads, &talking, peers)
    }

    /// Tells every stream of a worker to finish and leave. `None`: there is no such worker; false: it cannot be told.
    pub(crate) fn drain(&self, worker_id: &str, deadline: Duration) -> Option<bool> {
        let mut sessions = self.sessions();
        let named = sessions.open.values_mut();
        named
            .filter(|session| session.resources.worker_id == worker_id)
            .map(|session| session.drain(deadline))
            .reduce(|a, b| a | b)
    }
}
