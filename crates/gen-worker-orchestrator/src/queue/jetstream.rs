//! The engine on NATS JetStream, which replicates, persists and redelivers: any number of orchestrators, none of which
//! has anything that the others lack.
//!
//! - A run is a message of a work-queue stream, on a subject of its function and tenant, until it has ended. A lease is a
//!   message that was delivered and not acknowledged; it is extended while the worker's stream is up. A function of a
//!   tenant is a lane: it has a consumer, and every orchestrator asks the lanes that it knows of in fair order.
//! - Its record is an entry of a key-value bucket. Each step is written with the revision that it was made of, so that
//!   of two orchestrators one is refused. The record's attempt is the fence; a redelivery raises it.
//! - Payloads and outputs travel inside, or in an object store if they are large.
//! - What runs say, and who is to be interrupted, goes over plain subjects, and may be lost. Events are numbered by whoever says
//!   them, so that they have the same numbers wherever they are heard.
//!
//! | a run | |
//! |---|---|
//! | gets in, and out before it was leased | [`submit`] |
//! | is asked for in its turn, offered, and leased or not | [`lanes`], [`consumers`], [`offers`] |
//! | is with a worker whose stream is here | [`leases`] |
//! | is known, also after its end | [`records`], [`recent`], [`newest`] |
//! | is spoken of, and heard | [`telling`], [`said`] |
//! | is counted | [`stats`] |

mod connect;
mod consumers;
mod credentials;
mod lanes;
mod leases;
mod names;
mod newest;
mod offers;
mod packed;
mod recent;
mod records;
mod said;
mod servers;
mod stats;
mod submit;
mod telling;

use std::{collections::BTreeMap, error::Error, fmt, sync::atomic::AtomicU64, time::Duration};

use async_nats::{
    Client, HeaderMap,
    connection::State,
    jetstream::{AckKind, Context, Message, stream::Stream},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use gen_worker_proto::scheduler as v1;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use self::{
    consumers::Consumers,
    leases::Leases,
    names::{Lane, Names},
    records::{Entry, Held, INLINE, Records, TRIES, lost},
    said::{FAILED, Said, Word, number},
    servers::Servers,
};
use super::{
    Canceled, FileScope, FunctionStats, Heard, Lease, Outcome, Queue, Refusal, Unavailable,
    limits::TenantLimits,
    record::{Record, Standing, Verdict},
};
use crate::{
    auth::Now,
    config::NatsConfig,
    dispatch::{Load, best},
    events::may_be_told,
    peers::Presence,
    run::{RunRequest, RunView},
};

/// How long the servers may take to answer, an election of a leader included.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether the server that we are connected to reaches the others, and runs can be taken.
const LOOKED_AFTER: Duration = Duration::from_secs(2);

/// How long a payload or an output may take to be read: megabytes, from another machine.
const OBJECT: Duration = Duration::from_secs(30);

/// How long a listing may take that reads what has changed.
const LISTING: Duration = Duration::from_secs(30);

/// The shortest time between two extensions of a lease is a third of this.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// How often it is looked, at first, for runs that nobody told of: those that are tried again, and those whose lease ended.
const POLL: Duration = Duration::from_millis(250);

/// Most runs that are listed.
const LISTED: usize = 1000;

/// The engine on NATS JetStream.
pub(crate) struct JetStream {
    client: Client,
    context: Context,
    names: Names,
    stream: Stream<()>,
    records: Records,
    consumers: Consumers,
    leases: Leases,
    said: Said,
    /// The greatest number of a message that is known to be taken.
    newest: AtomicU64,
    /// Runs could be taken when that was looked at last.
    ready: watch::Sender<bool>,
    changed: Notify,
    grace: Duration,
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream").field("names", &self.names).finish_non_exhaustive()
    }
}

impl JetStream {
    /// Connects, and makes what is not there yet. Servers that cannot be asked just now are asked again for a while.
    pub(crate) async fn open(
        config: &NatsConfig,
        limits: &TenantLimits,
        grace: Duration,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let names = Names::new(&config.prefix);
        let Servers { client, context, stream, newest, runs, blobs } =
            Servers::open(config, limits, &names).await?;
        let grace = grace.max(SHORTEST_LEASE);
        Ok(Self {
            client,
            context,
            names,
            consumers: Consumers::new(stream.clone(), grace, limits),
            stream,
            records: Records::new(runs, blobs),
            leases: Leases::default(),
            said: Said::default(),
            newest: newest.into(),
            ready: watch::Sender::new(true),
            changed: Notify::new(),
            grace,
        })
    }

    /// Tells the servers about a message by its address.
    async fn acknowledge(&self, ack: &str, kind: AckKind) {
        if ack.is_empty() {
            return;
        }
        if let Err(error) = self.client.publish(ack.to_owned(), kind.into()).await {
            debug!(%error, "not acknowledged; it is delivered once more");
        }
    }

    /// Tells the servers that a message is done with, and waits until they know.
    async fn acknowledge_surely(&self, ack: &str) {
        if ack.is_empty() {
            return;
        }
        let known = self.client.request(ack.to_owned(), AckKind::Ack.into());
        if !matches!(timeout(PATIENCE, known).await, Ok(Ok(_))) {
            debug!("not acknowledged; it is delivered once more");
        }
    }

    /// Another run of a lane may start.
    fn freed(&self, lane: &Lane) {
        self.consumers.freed(lane);
        self.changed.notify_one();
    }

    /// Clears up after a run, and tells those who wait for its end.
    async fn ended(&self, entry: &Entry) {
        let Record { run_id, request, .. } = &entry.record;
        if self.consumers.has_limit() {
            // The next may start once the servers know of it, at whichever orchestrator.
            self.acknowledge_surely(&entry.ack).await;
            self.freed(&Lane::of(request));
            self.say_in_lane(run_id, &self.names.run(request), Word::End);
        } else {
            self.acknowledge(&entry.ack, AckKind::Ack).await;
            self.say(run_id, Word::End);
        }
        self.records.forget_payload(entry).await;
    }

    /// Leases what may be, of messages that were delivered, to workers that take it.
    async fn start_all(&self, messages: Vec<Message>, workers: &mut [Load]) -> Vec<Lease> {
        let offers = join_all(messages.into_iter().map(|message| self.offer(message))).await;
        let mut starting = Vec::new();
        for offer in offers {
            // What cannot be told now is delivered once more when its lease ends.
            let Ok(Some(offer)) = offer else { continue };
            let wanted = &offer.held.entry.record.request;
            match best(&wanted.function, &wanted.models, workers) {
                Some(worker) => {
                    worker.charge(&offer.held.entry.record.request.function);
                    starting.push((offer, worker.session, worker.resources.worker_id.clone()));
                }
                None => {
                    self.hand_back(&offer.message, &offer.held.entry.record.run_id, None).await;
                    self.consumers.heard(&Lane::of(wanted));
                }
            }
        }
        let started = starting.into_iter().map(async |(offer, session, worker_id)| {
            let function = offer.held.entry.record.request.function.clone();
            self.start(offer, session, &worker_id).await.ok_or((session, function))
        });
        let mut leases = Vec::new();
        for started in join_all(started).await {
            match started {
                Ok(lease) => leases.push(lease),
                Err((session, function)) => {
                    let worker = workers.iter_mut().find(|worker| worker.session == session);
                    worker.into_iter().for_each(|worker| worker.discharge(&function));
                }
            }
        }
        leases
    }

    /// Looks now and then which lanes have runs: what was said of some may have been lost.
    async fn look(&self) -> Result<(), Unavailable> {
        if self.consumers.is_to_look() {
            let asked = Instant::now();
            let open = timeout(PATIENCE, self.open_runs()).await;
            let open = open.map_err(|late| lost("the queue cannot be looked at in time")(&late))??;
            self.consumers.saw(open, asked);
        }
        Ok(())
    }

    /// A run's record with its output, as far as anybody here can know of it.
    async fn read(&self, run_id: &str) -> Result<Option<(Held, Bytes)>, Unavailable> {
        self.records.read(run_id, self.said.is_over(run_id)).await
    }

    /// Looks whether runs can be taken. Connects to another server when the one that we are connected to does not get the
    /// others to agree: the connection to it is well, so that the client would stay.
    async fn leave_who_lost_the_others(&self) {
        loop {
            sleep(LOOKED_AFTER).await;
            // What is known of runs, and those that have not ended, may be on different servers.
            let (agreed, led) = tokio::join!(
                timeout(PATIENCE, self.records.agree()),
                timeout(PATIENCE, self.stream.get_info()),
            );
            let agreed = matches!(agreed, Ok(Ok(())));
            self.ready.send_replace(agreed && matches!(led, Ok(Ok(_))));
            if !agreed && self.client.connection_state() == State::Connected {
                warn!("the NATS server does not reach the others; asking another");
                let _ = self.client.force_reconnect().await;
            }
        }
    }
}

#[async_trait]
impl Queue for JetStream {
    async fn run(&self) {
        tokio::join!(self.keep_listening(), self.leave_who_lost_the_others());
    }

    async fn enqueue(&self, run_id: &str, request: RunRequest) -> Result<bool, Refusal> {
        let mut record = Record::new(run_id, request.clone(), Now::read().unix_ms);
        let payload = std::mem::take(&mut record.request.payload);
        let entry = Entry::new(record, payload.len() > INLINE, self.newest());
        for _ in 0..TRIES {
            if let Some(held) = self.records.create(&entry).await? {
                self.take(&held, &payload).await?;
                self.say_queued(&held);
                return Ok(true);
            }
            // It may have been withdrawn meanwhile.
            let Some((known, _)) = self.records.get(run_id).await? else { continue };
            known.entry.record.is_made_of(&request)?;
            if self.take_again(known, &payload).await?.is_some() {
                return Ok(false);
            }
        }
        Err(Refusal::Unavailable)
    }

    async fn lease(&self, workers: &mut [Load]) -> Result<Vec<Lease>, Unavailable> {
        self.look().await?;
        // Of what comes, all may be somebody's already; others wait behind it.
        for _ in 0..TRIES {
            let messages = self.consumers.fetch(&self.names, workers).await?;
            if messages.is_empty() {
                break;
            }
            let leases = self.start_all(messages, workers).await;
            if !leases.is_empty() {
                return Ok(leases);
            }
        }
        Ok(Vec::new())
    }

    async fn changed(&self) {
        let _ = timeout(self.consumers.rest().min(POLL), self.changed.notified()).await;
    }

    async fn interrupted(&self) -> (String, i64) {
        self.said.interrupts.next().await
    }

    fn announce(&self, presence: Presence) {
        let said = rmp_serde::to_vec_named(&presence).unwrap_or_default();
        self.tell(self.names.presence(), HeaderMap::new(), said.into());
    }

    async fn announced(&self) -> Presence {
        self.said.presences.next().await
    }

    async fn adopt(&self, active: &v1::ActiveRun, worker_id: &str) -> Result<Option<String>, Unavailable> {
        let adopt = |entry: &mut Entry| {
            let its = entry.record.adopt(active.attempt, worker_id);
            // Written even where nothing else changes: whoever leases it at this moment is refused.
            (its, its.then(Bytes::new))
        };
        let Some((true, held)) = self.records.step(&active.run_id, None, adopt).await? else {
            return Ok(None);
        };
        self.acknowledge(&held.entry.ack, AckKind::Progress).await;
        // Whoever had the worker's stream before may not know yet that it is gone.
        let adopted = rmp_serde::to_vec(&(&active.run_id, active.attempt)).unwrap_or_default();
        self.tell(self.names.adopted(), HeaderMap::new(), adopted.into());
        let function = held.entry.record.request.function.clone();
        self.leases.keep(held);
        Ok(Some(function))
    }

    async fn lose(&self, runs: Vec<(String, i64)>) {
        for (run_id, attempt) in runs {
            self.leases.let_go(&run_id, attempt);
        }
    }

    async fn settle(
        &self,
        result: v1::TaskExecutionResult,
        worker_id: &str,
        accepted: bool,
    ) -> Result<(), Unavailable> {
        let run_id = result.run_id.clone();
        let attempt = result.attempt;
        let known = self.leases.find(&run_id, attempt, worker_id);
        let settle = |entry: &mut Entry| {
            let verdict = entry.record.settle(result.clone(), worker_id, accepted, Now::read().unix_ms);
            let output = match &verdict {
                Verdict::Stale => None,
                Verdict::Again { .. } => Some(Bytes::new()),
                Verdict::Ended { output } => {
                    entry.output_blob = output.len() > INLINE;
                    Some(output.clone())
                }
            };
            (verdict, output)
        };
        let Some((verdict, settled)) = self.records.step(&run_id, known, settle).await? else {
            self.leases.let_go(&run_id, attempt);
            return Ok(());
        };
        self.leases.learn(&settled);
        match verdict {
            Verdict::Stale => {}
            Verdict::Ended { .. } => self.ended(&settled.entry).await,
            Verdict::Again { after, failed } => {
                if let Some(failed) = failed {
                    self.say_of_step(&settled, FAILED, failed.to_string().into());
                }
                self.acknowledge(&settled.entry.ack, AckKind::Nak(Some(after))).await;
                self.consumers.expect(&Lane::of(&settled.entry.record.request), after);
                self.changed.notify_one();
            }
        }
        Ok(())
    }

    async fn cancel(&self, run_id: &str) -> Result<Option<Canceled>, Unavailable> {
        let cancel = |entry: &mut Entry| {
            let before = entry.record.standing.clone();
            let verdict = entry.record.cancel(Now::read().unix_ms);
            match before {
                Standing::Ended { .. } => (Canceled::Ended, None),
                Standing::Queued => {
                    let output = if let Verdict::Ended { output } = verdict { output } else { Bytes::new() };
                    (Canceled::Waiting, Some(output))
                }
                Standing::Running => {
                    (Canceled::Running { attempt: entry.record.attempt }, Some(Bytes::new()))
                }
            }
        };
        let Some((canceled, held)) = self.records.step(run_id, None, cancel).await? else { return Ok(None) };
        self.leases.learn(&held);
        match canceled {
            Canceled::Ended => {}
            Canceled::Waiting => {
                self.say(run_id, Word::End);
                self.withdraw(&held.entry).await;
            }
            Canceled::Running { attempt } => {
                let interrupt = rmp_serde::to_vec(&(run_id, attempt)).unwrap_or_default();
                self.tell(self.names.interrupt(), HeaderMap::new(), interrupt.into());
            }
        }
        Ok(Some(canceled))
    }

    fn event(&self, event: v1::WorkerEvent) {
        if may_be_told(&event.event_type, &event.payload_json) {
            self.say_of_lease(&event.run_id, &event.event_type, event.payload_json);
        }
    }

    async fn view(&self, run_id: &str) -> Result<Option<RunView>, Unavailable> {
        let known = self.read(run_id).await?;
        Ok(known.map(|(held, output)| held.entry.record.view(&output)))
    }

    async fn list(&self, tenant_id: Option<&str>, limit: usize) -> Result<Vec<RunView>, Unavailable> {
        self.records.newest(tenant_id, limit.min(LISTED)).await
    }

    async fn outcome(&self, run_id: &str) -> Result<Option<Option<Outcome>>, Unavailable> {
        let known = self.read(run_id).await?;
        Ok(known.map(|(held, output)| held.entry.record.outcome(&output)))
    }

    async fn watch(&self, run_id: &str) -> Result<Option<watch::Receiver<()>>, Unavailable> {
        let known = self.records.show(run_id, self.said.is_over(run_id)).await?;
        Ok(known.map(|(held, _)| self.said.watch(run_id, held.entry.record.has_ended())))
    }

    async fn events(&self, run_id: &str, after: u64) -> Result<Option<Heard>, Unavailable> {
        // Of a run that talks nothing is read: whoever waits for its end looks when it is silent, at the latest a second later.
        let (batch, has_ended) = self.said.after(run_id, after);
        if !has_ended && !batch.events.is_empty() {
            return Ok(Some((batch, None)));
        }
        // First how it stands: what was said before its end is then heard.
        let Some((held, output)) = self.read(run_id).await? else { return Ok(None) };
        let (batch, _) = self.said.after(run_id, after);
        let record = &held.entry.record;
        let end = number(held.revision, 0).filter(|_| record.has_ended());
        Ok(Some((batch, end.map(|id| (id, record.view(&output))))))
    }

    async fn file_scope(&self, token: &str) -> Result<Option<FileScope>, Unavailable> {
        let Some(run_id) = Record::run_of_token(token) else { return Ok(None) };
        let known = self.records.show(run_id, self.said.is_over(run_id)).await?;
        Ok(known.and_then(|(held, _)| held.entry.record.file_scope(token, Now::read().unix_ms)))
    }

    async fn stats(&self) -> Result<BTreeMap<String, FunctionStats>, Unavailable> {
        self.read_stats().await
    }

    fn is_ready(&self) -> bool {
        self.client.connection_state() == State::Connected && *self.ready.borrow()
    }

    async fn close(&self) {
        let _ = timeout(PATIENCE, self.client.flush()).await;
    }
}

#[cfg(test)]
mod tests;
