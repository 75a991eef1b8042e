//! The engine on NATS JetStream, which replicates, persists and redelivers: any number of orchestrators, none of which
//! has anything that the others lack.
//!
//! - A run is a message of a work-queue stream, on a subject of its function and tenant, until it has ended. A lease is a
//!   message that was delivered and not acknowledged; it is extended while the worker's stream is up.
//! - Its record is an entry of a key-value bucket. Each step is written with the revision that it was made of, so that
//!   of two orchestrators one is refused. The record's attempt is the fence; a redelivery raises it.
//! - Payloads and outputs travel inside, or in an object store if they are large.
//! - What runs say, and who is to be interrupted, goes over plain subjects, and may be lost.

mod names;
mod packed;
mod said;

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Client, ConnectOptions, HeaderMap, Subscriber,
    jetstream::{
        self, AckKind, Context, ErrorCode,
        consumer::{AckPolicy, Consumer, pull},
        context::PublishErrorKind,
        kv::{self, CreateErrorKind, UpdateErrorKind},
        object_store::{self, ObjectStore},
        stream::{self, DiscardPolicy, RetentionPolicy},
    },
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::join_all};
use gen_worker_proto::scheduler as v1;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tracing::{debug, warn};

use self::{
    names::{Names, token},
    packed::{pack, unpack},
    said::{Said, Word},
};
use super::{
    Canceled, FileScope, FunctionStats, Lease, Queue, Refusal, Unavailable,
    limits::{RETRY_AFTER, TenantLimits},
    record::{Record, Standing, Verdict},
};
use crate::{
    auth::Now,
    config::NatsConfig,
    dispatch::{Load, best},
    events::Batch,
    run::{RunError, RunRequest, RunView},
};

/// Larger payloads and outputs go to the object store: a message of a server with default settings has at most 1 MiB.
const INLINE: usize = 512 << 10;

/// How long the servers may take to answer, an election of a leader included.
const PATIENCE: Duration = Duration::from_secs(5);

/// The shortest time between two extensions of a lease is a third of this.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// How long the servers may take to be there when an orchestrator starts, and how often they are asked.
const STARTING: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);

/// How often it is looked for runs that nobody told of: those that are tried again, and those whose lease ended.
const POLL: Duration = Duration::from_millis(250);

/// How long a message waits that somebody else's step got in the way of.
const CONTESTED: Duration = Duration::from_millis(50);

/// How often a step is tried anew on a record that somebody else has changed meanwhile.
const TRIES: usize = 8;

/// Most runs that are listed.
const LISTED: usize = 1000;

/// Most messages asked for at once, of one function.
const BATCH: usize = 256;

/// How long the servers know the runs that were published, to drop repetitions.
const DUPLICATES: Duration = Duration::from_secs(120);

/// Carries the revision of a run's record when the run was published.
const REVISION: &str = "Gen-Worker-Revision";

/// A run's record with where its message is.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    record: Record,
    /// The number of the run's message in the stream; 0: it was never leased. A repetition has another.
    sequence: u64,
    /// Where the message is acknowledged, as it was delivered last.
    ack: String,
    /// Whether the payload is in the object store.
    blob: bool,
    /// Whether the output is there, and not behind the entry.
    output_blob: bool,
}

impl Entry {
    fn new(record: Record, blob: bool) -> Self {
        Self { record, sequence: 0, ack: String::new(), blob, output_blob: false }
    }
}

/// An entry as it was read or written.
#[derive(Debug, Clone)]
struct Held {
    entry: Entry,
    revision: u64,
}

/// A message that may be leased.
struct Offer {
    message: jetstream::Message,
    held: Held,
    payload: Bytes,
}

/// Why a step was not made.
#[derive(Debug)]
enum Missed {
    /// Somebody else has changed the record.
    Contested,
    Unavailable,
}

impl From<Missed> for Unavailable {
    fn from(_: Missed) -> Self {
        Self
    }
}

/// The engine on NATS JetStream.
pub(crate) struct JetStream {
    client: Client,
    context: Context,
    names: Names,
    stream: stream::Stream<()>,
    runs: kv::Store,
    blobs: ObjectStore,
    consumers: tokio::sync::Mutex<HashMap<String, Consumer<pull::Config>>>,
    /// The runs that workers have whose streams are here: their leases are extended.
    held: Mutex<HashMap<String, Held>>,
    said: Said,
    changed: Notify,
    turn: AtomicUsize,
    grace: Duration,
}

impl fmt::Debug for JetStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStream").field("names", &self.names).finish_non_exhaustive()
    }
}

fn lost(what: &'static str) -> impl Fn(&dyn Error) -> Unavailable {
    move |error| {
        warn!(%error, what, "NATS");
        Unavailable
    }
}

impl JetStream {
    /// Connects, and makes what is not there yet. Servers that cannot be asked just now are asked again for a while.
    pub(crate) async fn open(
        config: &NatsConfig,
        limits: &TenantLimits,
        grace: Duration,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let until = Instant::now() + STARTING;
        loop {
            match Self::try_open(config, limits, grace).await {
                Err(error) if Instant::now() < until => {
                    warn!(%error, "the NATS servers cannot be used yet; trying again");
                    sleep(AGAIN).await;
                }
                done => return done,
            }
        }
    }

    async fn try_open(
        config: &NatsConfig,
        limits: &TenantLimits,
        grace: Duration,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut options = ConnectOptions::new()
            .name("gen-worker orchestrator")
            // What is said here is known here.
            .no_echo()
            .connection_timeout(PATIENCE)
            .request_timeout(Some(PATIENCE))
            .max_reconnects(None)
            .subscription_capacity(1 << 16);
        if let Some(credentials) = &config.credentials {
            options = options.credentials_file(credentials).await?;
        }
        if let Some(authorities) = &config.tls_ca {
            options = options.add_root_certificates(authorities.clone());
        }
        let client = options.connect(config.urls.clone()).await?;
        let context = match &config.api_prefix {
            Some(prefix) => jetstream::with_prefix(client.clone(), prefix),
            None => jetstream::new(client.clone()),
        };
        let names = Names::new(&config.prefix);
        let stream = context
            .create_or_update_stream(stream::Config {
                name: names.stream(),
                subjects: vec![names.all_runs()],
                retention: RetentionPolicy::WorkQueue,
                // Whoever submits is told, where the oldest would be dropped otherwise.
                discard: DiscardPolicy::New,
                discard_new_per_subject: limits.max_queued.is_some(),
                max_messages: i64::try_from(config.max_open).unwrap_or(i64::MAX),
                max_messages_per_subject: limits.max_queued.map_or(-1, |max| max as i64),
                max_age: config.max_age,
                duplicate_window: DUPLICATES.min(config.max_age),
                num_replicas: config.replicas,
                allow_direct: true,
                ..Default::default()
            })
            .await?;
        let stream = context.get_stream_no_info(&stream.config.name).await?;
        let runs = context
            .create_or_update_key_value(kv::Config {
                bucket: names.bucket("runs"),
                history: 1,
                max_age: config.max_age,
                num_replicas: config.replicas,
                ..Default::default()
            })
            .await?;
        let blobs = names.bucket("blobs");
        let blobs = match context.get_object_store(&blobs).await {
            Ok(store) => store,
            Err(_) => {
                let wanted = object_store::Config {
                    bucket: blobs,
                    max_age: config.max_age,
                    num_replicas: config.replicas,
                    ..Default::default()
                };
                context.create_object_store(wanted).await?
            }
        };
        Ok(Self {
            client,
            context,
            names,
            stream,
            runs,
            blobs,
            consumers: tokio::sync::Mutex::default(),
            held: Mutex::default(),
            said: Said::default(),
            changed: Notify::new(),
            turn: AtomicUsize::new(0),
            grace: grace.max(SHORTEST_LEASE),
        })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get(&self, run_id: &str) -> Result<Option<(Held, Bytes)>, Unavailable> {
        let found = self.runs.entry(token(run_id)).await.map_err(|e| lost("a record cannot be read")(&e))?;
        let Some(found) = found.filter(|found| found.operation == kv::Operation::Put) else {
            return Ok(None);
        };
        let (entry, output) = unpack(found.value).map_err(|e| lost("a record is not ours")(&e))?;
        Ok(Some((Held { entry, revision: found.revision }, output)))
    }

    /// The same, for readers, who are told that there is no such run if it cannot be known.
    async fn read(&self, run_id: &str) -> Option<(Record, Bytes)> {
        let (held, output) = self.get(run_id).await.ok()??;
        let output = if held.entry.output_blob {
            self.blob(&names::output(&held.entry.record)).await.ok()?
        } else {
            output
        };
        Some((held.entry.record, output))
    }

    /// Writes a step, if nobody else has made one meanwhile.
    async fn put(&self, held: &mut Held, output: &[u8]) -> Result<(), Missed> {
        let key = token(&held.entry.record.run_id);
        let value = pack(&held.entry, output);
        held.revision = self.runs.update(key, value, held.revision).await.map_err(|error| {
            if error.kind() == UpdateErrorKind::WrongLastRevision {
                return Missed::Contested;
            }
            lost("a record cannot be written")(&error);
            Missed::Unavailable
        })?;
        Ok(())
    }

    async fn put_blob(&self, name: &str, bytes: &Bytes) -> Result<(), Unavailable> {
        let stored = self.blobs.put(name, &mut bytes.as_ref()).await;
        stored.map(drop).map_err(|e| lost("an object cannot be written")(&e))
    }

    async fn blob(&self, name: &str) -> Result<Bytes, Unavailable> {
        let mut object = self.blobs.get(name).await.map_err(|e| lost("an object cannot be read")(&e))?;
        let mut bytes = Vec::with_capacity(object.info.size);
        object.read_to_end(&mut bytes).await.map_err(|e| lost("an object cannot be read")(&e))?;
        Ok(bytes.into())
    }

    /// Puts a run into the stream. Doing so again does no harm.
    async fn publish(&self, entry: &Entry, payload: &Bytes, revision: u64) -> Result<(), Refusal> {
        let record = &entry.record;
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, record.run_id.as_str());
        headers.insert(REVISION, revision.to_string().as_str());
        let inline: &[u8] = if entry.blob { &[] } else { payload };
        let sent = self
            .context
            .publish_with_headers(self.names.run(&record.request), headers, pack(entry, inline))
            .await;
        let stored = match sent {
            Ok(stored) => stored.await,
            Err(error) => Err(error),
        };
        stored.map(drop).map_err(|error| {
            let refused = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
            match refused.filter(|_| error.kind() == PublishErrorKind::Other) {
                Some(full) if full.error_code() == ErrorCode::STREAM_STORE_FAILED => {
                    if full.to_string().contains("per subject") {
                        Refusal::TenantFull { retry_after: RETRY_AFTER }
                    } else {
                        Refusal::Full { retry_after: RETRY_AFTER }
                    }
                }
                _ => {
                    lost("a run cannot be published")(&error);
                    Refusal::Unavailable
                }
            }
        })
    }

    /// The consumer that all orchestrators share for a function.
    async fn consumer(&self, function: &str) -> Result<Consumer<pull::Config>, Unavailable> {
        let mut consumers = self.consumers.lock().await;
        if let Some(known) = consumers.get(function) {
            return Ok(known.clone());
        }
        let wanted = pull::Config {
            durable_name: Some(token(function)),
            filter_subject: self.names.runs_of(function),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.grace,
            // How often a run is tried is the record's business.
            max_deliver: -1,
            max_ack_pending: -1,
            ..Default::default()
        };
        let made = self.stream.create_consumer(wanted).await;
        let made = made.map_err(|e| lost("a consumer cannot be made")(&e))?;
        consumers.insert(function.to_owned(), made.clone());
        Ok(made)
    }

    /// Messages of a function, as many as there are up to `most`.
    async fn fetch(&self, function: &str, most: usize) -> Result<Vec<jetstream::Message>, Unavailable> {
        let consumer = self.consumer(function).await?;
        let fetched = timeout(PATIENCE, async {
            consumer.fetch().max_messages(most.min(BATCH)).messages().await?.try_collect().await
        });
        match fetched.await {
            Ok(Ok(messages)) => Ok(messages),
            Ok(Err(error)) => {
                let error: async_nats::Error = error;
                // It may have been removed with its stream.
                self.consumers.lock().await.remove(function);
                warn!(%error, function, "runs cannot be fetched");
                Err(Unavailable)
            }
            Err(_) => Err(Unavailable),
        }
    }

    /// How many runs of each function to ask for: all have the same share of what the workers could take, and each is
    /// the first in its turn. Whoever leases asks again, until nothing comes.
    fn shares(&self, workers: &[Load]) -> Vec<(String, usize)> {
        let mut room: BTreeMap<&str, usize> = BTreeMap::new();
        for worker in workers {
            for function in &worker.resources.available_functions {
                *room.entry(function).or_default() += worker.room_for(function);
            }
        }
        room.retain(|_, free| *free > 0);
        let count = room.len();
        let mut shares: Vec<_> =
            room.into_iter().map(|(function, free)| (function.to_owned(), free.div_ceil(count))).collect();
        if count > 0 {
            shares.rotate_left(self.turn.fetch_add(1, Ordering::Relaxed) % count);
        }
        shares
    }

    /// Sees what a delivered message is about; `None`: nothing is to be leased.
    async fn offer(&self, message: jetstream::Message) -> Result<Option<Offer>, Unavailable> {
        let info = message.info().map_err(|error| lost("a message is not ours")(error.as_ref()))?;
        let (sequence, delivered) = (info.stream_sequence, info.delivered);
        let (first, payload): (Entry, Bytes) =
            unpack(message.payload.clone()).map_err(|e| lost("a message is not ours")(&e))?;
        let run_id = first.record.run_id.clone();
        let revision =
            message.headers.as_ref().and_then(|headers| headers.get(REVISION)?.as_str().parse().ok());
        let mut held = match revision.filter(|_| delivered == 1) {
            Some(revision) => Held { entry: first, revision },
            None => match self.get(&run_id).await? {
                Some((held, _)) => held,
                // It is too old to be known.
                None => return self.dismiss(&message).await,
            },
        };
        let known = held.entry.sequence;
        if held.entry.record.has_ended() || (known != 0 && known != sequence) {
            return self.dismiss(&message).await;
        }
        let ack = message.reply.as_ref().map(ToString::to_string).unwrap_or_default();
        if held.entry.record.standing == Standing::Running {
            let attempt = held.entry.record.attempt;
            if let Some(here) =
                self.held().get_mut(&run_id).filter(|here| here.entry.record.attempt == attempt)
            {
                // The servers lost track, not the worker.
                here.entry.ack = ack;
                return Ok(None);
            }
            match held.entry.record.lose(Now::read().unix_ms) {
                Verdict::Again { failed, .. } => self.failed(&run_id, failed),
                _ => {
                    self.put(&mut held, &[]).await?;
                    self.ended(&held.entry).await;
                    return self.dismiss(&message).await;
                }
            }
        }
        held.entry.sequence = sequence;
        held.entry.ack = ack;
        let payload =
            if held.entry.blob { self.blob(&names::payload(&held.entry.record)).await? } else { payload };
        Ok(Some(Offer { message, held, payload }))
    }

    async fn dismiss<T>(&self, message: &jetstream::Message) -> Result<Option<T>, Unavailable> {
        message
            .ack()
            .await
            .map(|()| None)
            .map_err(|error| lost("a message cannot be acknowledged")(error.as_ref()))
    }

    /// Gives a run to a worker.
    async fn start(&self, offer: Offer, session: u64, worker_id: &str) -> Option<Lease> {
        let Offer { message, mut held, payload } = offer;
        let run_id = held.entry.record.run_id.clone();
        let started = held.entry.record.start(worker_id, Now::read().unix_ms);
        if let Err(missed) = self.put(&mut held, &[]).await {
            debug!(run_id, ?missed, "run not leased");
            let _ = message.ack_with(AckKind::Nak(Some(CONTESTED))).await;
            return None;
        }
        let request = held.entry.record.to_request(payload);
        self.held().insert(run_id.clone(), held);
        self.say(&run_id, Word::event("started", started.to_string().into()));
        Some(Lease { session, request })
    }

    /// Makes a step on the record as it is here, or else as it is stored, until nobody gets in the way.
    async fn step<T>(
        &self,
        run_id: &str,
        known: Option<Held>,
        mut step: impl FnMut(&mut Entry) -> (T, Option<Bytes>),
    ) -> Result<Option<(T, Held)>, Unavailable> {
        let mut known = known;
        for _ in 0..TRIES {
            let mut held = match known.take() {
                Some(held) => held,
                None => match self.get(run_id).await? {
                    Some((held, _)) => held,
                    None => return Ok(None),
                },
            };
            let (done, output) = step(&mut held.entry);
            let Some(output) = output else { return Ok(Some((done, held))) };
            if held.entry.output_blob {
                self.put_blob(&names::output(&held.entry.record), &output).await?;
            }
            let inline: &[u8] = if held.entry.output_blob { &[] } else { &output };
            match self.put(&mut held, inline).await {
                Ok(()) => return Ok(Some((done, held))),
                Err(Missed::Contested) => {}
                Err(Missed::Unavailable) => return Err(Unavailable),
            }
        }
        Err(Unavailable)
    }

    /// Tells the servers about a message by its address.
    async fn acknowledge(&self, entry: &Entry, kind: AckKind) {
        if entry.ack.is_empty() {
            return;
        }
        if let Err(error) = self.client.publish(entry.ack.clone(), kind.into()).await {
            debug!(%error, "not acknowledged; it is delivered once more");
        }
    }

    fn failed(&self, run_id: &str, failed: Option<serde_json::Value>) {
        if let Some(failed) = failed {
            self.say(run_id, Word::event("attempt_failed", failed.to_string().into()));
        }
    }

    /// Clears up after a run, and tells those who wait for its end.
    async fn ended(&self, entry: &Entry) {
        let run_id = &entry.record.run_id;
        self.acknowledge(entry, AckKind::Ack).await;
        self.say(run_id, Word::End);
        if entry.blob {
            let _ = self.blobs.delete(names::payload(&entry.record)).await;
        }
    }

    /// Tells everybody something about a run. It may be lost.
    fn say(&self, run_id: &str, word: Word) {
        let (subject, headers, payload) = (self.names.said(run_id), word.headers(), word.payload());
        self.said.hear(run_id, word);
        self.tell(subject, headers, payload);
    }

    /// Sends without waiting for room.
    fn tell(&self, subject: String, headers: HeaderMap, payload: Bytes) {
        let sending = self.client.publish_with_headers(subject, headers, payload);
        // The client has a queue: this waits only when it is full, and then nothing is said.
        let _ = futures_util::FutureExt::now_or_never(sending);
    }

    async fn extend(&self) {
        let held: Vec<Entry> = self.held().values().map(|held| held.entry.clone()).collect();
        for entry in held {
            self.acknowledge(&entry, AckKind::Progress).await;
        }
    }

    /// Hears what others say, and extends the leases of the runs that are here, until the subscription ends.
    async fn listen(&self, mut heard: Subscriber) {
        let mut extend = interval(self.grace / 3);
        extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut wake = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                message = heard.next() => match message {
                    Some(message) => self.hear(message),
                    None => return,
                },
                _ = extend.tick() => self.extend().await,
                // Whoever waits for a run may have missed its end.
                _ = wake.tick() => self.said.wake_all(),
            }
        }
    }

    fn hear(&self, message: async_nats::Message) {
        if message.subject.as_str() == self.names.nudge() {
            self.changed.notify_one();
        } else if message.subject.as_str() == self.names.interrupt() {
            if let Ok(interrupt) = rmp_serde::from_slice(&message.payload) {
                self.said.interrupt(interrupt);
            }
        } else if let Some(run_id) = self.names.run_said(message.subject.as_str())
            && let Some(word) = Word::read(message)
        {
            self.said.hear(&run_id, word);
        }
    }
}

#[async_trait]
impl Queue for JetStream {
    async fn run(&self) {
        loop {
            match self.client.subscribe(self.names.everything_said()).await {
                Ok(heard) => self.listen(heard).await,
                Err(error) => warn!(%error, "what is said elsewhere cannot be heard"),
            }
            sleep(AGAIN).await;
        }
    }

    async fn enqueue(&self, run_id: &str, request: RunRequest) -> Result<bool, Refusal> {
        let mut record = Record::new(run_id, request.clone(), Now::read().unix_ms);
        let payload = std::mem::take(&mut record.request.payload);
        let entry = Entry::new(record, payload.len() > INLINE);
        if entry.blob {
            let stored = self.put_blob(&names::payload(&entry.record), &payload).await;
            stored.map_err(|Unavailable| Refusal::Unavailable)?;
        }
        match self.runs.create(token(run_id), pack(&entry, &[])).await {
            Ok(revision) => {
                if let Err(refusal) = self.publish(&entry, &payload, revision).await {
                    if refusal != Refusal::Unavailable {
                        let _ = self.runs.purge(token(run_id)).await;
                    }
                    return Err(refusal);
                }
                self.say(run_id, Word::event("queued", Bytes::from_static(b"{}")));
                self.tell(self.names.nudge(), HeaderMap::new(), Bytes::new());
                self.changed.notify_one();
                Ok(true)
            }
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => {
                let known = self.get(run_id).await.map_err(|Unavailable| Refusal::Unavailable)?;
                let (known, _) = known.ok_or(Refusal::Unavailable)?;
                known.entry.record.is_made_of(&request)?;
                // Whoever took it may have gone before the stream had it.
                if known.entry.sequence == 0 && !known.entry.record.has_ended() {
                    self.publish(&known.entry, &payload, known.revision).await?;
                }
                Ok(false)
            }
            Err(error) => {
                lost("a record cannot be made")(&error);
                Err(Refusal::Unavailable)
            }
        }
    }

    async fn lease(&self, workers: &mut [Load]) -> Result<Vec<Lease>, Unavailable> {
        let shares = self.shares(workers);
        let fetched = join_all(shares.iter().map(|(function, most)| self.fetch(function, *most))).await;
        let messages = fetched.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten();
        let offers = join_all(messages.map(|message| self.offer(message))).await;
        let mut starting = Vec::new();
        for offer in offers {
            // What cannot be told now is delivered once more when its lease ends.
            let Ok(Some(offer)) = offer else { continue };
            match best(&offer.held.entry.record.request, workers) {
                Some(worker) => {
                    worker.charge(&offer.held.entry.record.request.function);
                    starting.push((offer, worker.session, worker.resources.worker_id.clone()));
                }
                None => {
                    let _ = offer.message.ack_with(AckKind::Nak(None)).await;
                }
            }
        }
        let started = starting
            .into_iter()
            .map(async |(offer, session, worker_id)| self.start(offer, session, &worker_id).await);
        Ok(join_all(started).await.into_iter().flatten().collect())
    }

    async fn changed(&self) {
        let _ = timeout(POLL, self.changed.notified()).await;
    }

    async fn interrupted(&self) -> (String, i64) {
        self.said.interrupted().await
    }

    async fn adopt(&self, active: &v1::ActiveRun, worker_id: &str) -> Option<String> {
        let adopt = |entry: &mut Entry| {
            let its = entry.record.adopt(active.attempt, worker_id);
            // Written even where nothing else changes: whoever leases it at this moment is refused.
            (its, its.then(Bytes::new))
        };
        let (its, held) = self.step(&active.run_id, None, adopt).await.ok()??;
        if !its {
            return None;
        }
        self.acknowledge(&held.entry, AckKind::Progress).await;
        let function = held.entry.record.request.function.clone();
        self.held().insert(active.run_id.clone(), held);
        Some(function)
    }

    async fn lose(&self, runs: Vec<(String, i64)>) {
        let mut held = self.held();
        for (run_id, attempt) in runs {
            if held.get(&run_id).is_some_and(|held| held.entry.record.attempt == attempt) {
                held.remove(&run_id);
            }
        }
    }

    async fn settle(
        &self,
        result: v1::TaskExecutionResult,
        worker_id: &str,
        accepted: bool,
    ) -> Result<(), Unavailable> {
        let run_id = result.run_id.clone();
        let known = self.held().get(&run_id).cloned();
        let known = known.filter(|held| held.entry.record.is_with(result.attempt, worker_id));
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
        let Some((verdict, settled)) = self.step(&run_id, known, settle).await? else { return Ok(()) };
        if verdict == Verdict::Stale {
            return Ok(());
        }
        self.held().remove(&run_id);
        match verdict {
            Verdict::Stale => {}
            Verdict::Ended { .. } => self.ended(&settled.entry).await,
            Verdict::Again { after, failed } => {
                self.failed(&run_id, failed);
                self.acknowledge(&settled.entry, AckKind::Nak(Some(after))).await;
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
        let Some((canceled, held)) = self.step(run_id, None, cancel).await? else { return Ok(None) };
        match canceled {
            Canceled::Ended => {}
            // Its message is dropped when it is next delivered.
            Canceled::Waiting => self.say(run_id, Word::End),
            Canceled::Running { attempt } => {
                if let Some(here) = self.held().get_mut(run_id) {
                    *here = held;
                }
                let interrupt = rmp_serde::to_vec(&(run_id, attempt)).unwrap_or_default();
                self.tell(self.names.interrupt(), HeaderMap::new(), interrupt.into());
            }
        }
        Ok(Some(canceled))
    }

    fn event(&self, event: v1::WorkerEvent) {
        self.say(&event.run_id, Word::Event { event_type: event.event_type, payload: event.payload_json });
    }

    async fn view(&self, run_id: &str) -> Option<RunView> {
        self.read(run_id).await.map(|(record, output)| record.view(&output))
    }

    async fn list(&self) -> Vec<RunView> {
        let all = async {
            // Of an empty bucket nothing would ever come.
            if self.runs.stream.get_info().await.ok()?.state.messages == 0 {
                return None;
            }
            let mut entries = self.runs.watch_with_history(">").await.ok()?;
            let mut runs = Vec::new();
            while let Some(Ok(entry)) = entries.next().await {
                let last = entry.seen_current;
                if entry.operation == kv::Operation::Put
                    && let Ok((Entry { record, .. }, _)) = unpack(entry.value)
                {
                    runs.push(record.summary());
                }
                if last {
                    break;
                }
            }
            runs.sort_unstable_by_key(|run| std::cmp::Reverse(run.created_at_ms));
            runs.truncate(LISTED);
            Some(runs)
        };
        timeout(PATIENCE, all).await.ok().flatten().unwrap_or_default()
    }

    async fn outcome(&self, run_id: &str) -> Option<Option<Result<Bytes, RunError>>> {
        self.read(run_id).await.map(|(record, output)| record.outcome(&output))
    }

    async fn watch(&self, run_id: &str) -> Option<watch::Receiver<()>> {
        self.get(run_id).await.ok()??;
        Some(self.said.watch(run_id))
    }

    async fn events(&self, run_id: &str, after: u64) -> Option<(Batch, Option<(u64, RunView)>)> {
        // First how it stands: what was said before its end is then heard.
        let (record, output) = self.read(run_id).await?;
        let (batch, last_id) = self.said.after(run_id, after);
        let end = record.has_ended().then(|| (last_id + 1, record.view(&output)));
        Some((batch, end))
    }

    async fn file_scope(&self, token: &str) -> Option<FileScope> {
        let (held, _) = self.get(Record::run_of_token(token)?).await.ok()??;
        held.entry.record.file_scope(token, Now::read().unix_ms)
    }

    async fn stats(&self) -> BTreeMap<String, FunctionStats> {
        let mut stats: BTreeMap<String, FunctionStats> = BTreeMap::new();
        let open = async {
            let subjects = self.stream.info_with_subjects(self.names.all_runs()).await.ok()?;
            subjects.try_collect::<Vec<_>>().await.ok()
        };
        for (subject, count) in timeout(PATIENCE, open).await.ok().flatten().unwrap_or_default() {
            if let Some(function) = self.names.function_of(&subject) {
                stats.entry(function).or_default().waiting += count;
            }
        }
        for (function, of) in &mut stats {
            let info = self.stream.consumer_info(token(function)).await.ok();
            let (running, delivered) =
                info.map_or((0, 0), |info| (info.num_ack_pending, info.delivered.stream_sequence));
            of.running = running.min(of.waiting);
            of.waiting -= of.running;
            if of.waiting > 0 {
                let first = self
                    .stream
                    .direct_get_next_for_subject(self.names.runs_of(function), Some(delivered + 1))
                    .await;
                if let Ok(first) = first {
                    let sent_ms = first.time.unix_timestamp_nanos() / 1_000_000;
                    let age = i128::from(Now::read().unix_ms) - sent_ms;
                    of.oldest = Duration::from_millis(u64::try_from(age).unwrap_or(0));
                }
            }
        }
        stats
    }

    async fn close(&self) {
        let _ = timeout(PATIENCE, self.client.flush()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, sync::Arc};

    use gen_worker_testkit::NatsServers;
    use tokio::task::JoinSet;

    use super::*;
    use crate::queue::conformance::{GRACE, conformance, next};

    /// Where `cargo xtask nats` puts it, or what `cargo xtask test` says.
    fn program() -> PathBuf {
        #[expect(
            clippy::disallowed_methods,
            reason = "where the test run found the server, no setting of ours"
        )]
        let told = std::env::var_os("NATS_SERVER_PATH");
        told.map_or_else(
            || concat!(env!("CARGO_MANIFEST_DIR"), "/../../.nats/nats-server").into(),
            PathBuf::from,
        )
    }

    async fn open() -> (Arc<dyn Queue>, (JoinSet<()>, NatsServers)) {
        let servers = NatsServers::start(program(), 1).await;
        let queue = engine(&servers, TenantLimits::default()).await;
        let running = running(&[&queue]);
        (queue, (running, servers))
    }

    async fn engine(servers: &NatsServers, limits: TenantLimits) -> Arc<JetStream> {
        let config = NatsConfig::of(servers.urls());
        Arc::new(JetStream::open(&config, &limits, GRACE).await.unwrap())
    }

    conformance!(open());

    fn running(queues: &[&Arc<JetStream>]) -> JoinSet<()> {
        let queues = queues.iter().map(|queue| Arc::clone(queue));
        queues.map(|queue| async move { queue.run().await }).collect()
    }

    #[tokio::test]
    async fn what_one_orchestrator_began_another_goes_on_with() {
        let servers = NatsServers::start(program(), 1).await;
        let here = engine(&servers, TenantLimits::default()).await;
        let there = engine(&servers, TenantLimits::default()).await;
        let _running = running(&[&here, &there]);
        // Too large for a message.
        let large = Bytes::from(vec![b'x'; 3 << 20]);
        let asked = RunRequest { payload: large.clone(), ..RunRequest::of("f") };
        assert_eq!(here.enqueue("r", asked.clone()).await, Ok(true));
        assert_eq!(there.enqueue("r", asked).await, Ok(false));
        let run = next(here.as_ref()).await;
        assert_eq!(run.input_payload, large);
        here.lose(vec![("r".to_owned(), 1)]).await;
        let active = v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 };
        assert_eq!(there.adopt(&active, "w1").await.as_deref(), Some("f"));
        assert_eq!(here.cancel("r").await, Ok(Some(Canceled::Running { attempt: 1 })));
        let interrupted = timeout(PATIENCE, there.interrupted()).await;
        assert_eq!(interrupted.unwrap(), ("r".to_owned(), 1));
        let output = Bytes::from(rmp_serde::to_vec(&"y".repeat(3 << 20)).unwrap());
        let result = v1::TaskExecutionResult {
            run_id: "r".to_owned(),
            success: true,
            output_payload: output.clone(),
            attempt: 1,
            ..Default::default()
        };
        there.settle(result, "w1", true).await.unwrap();
        assert_eq!(here.outcome("r").await, Some(Some(Ok(output))));
    }

    #[tokio::test]
    async fn the_servers_own_limits_are_the_limits_of_a_fleet() {
        let servers = NatsServers::start(program(), 1).await;
        let limits = TenantLimits { max_queued: Some(1), ..Default::default() };
        let config = NatsConfig { max_open: 2, ..NatsConfig::of(servers.urls()) };
        let queue = JetStream::open(&config, &limits, GRACE).await.unwrap();
        let of = |tenant: &str| RunRequest { tenant_id: Some(tenant.to_owned()), ..RunRequest::of("f") };
        assert_eq!(queue.enqueue("a", of("t")).await, Ok(true));
        let refused = queue.enqueue("b", of("t")).await;
        assert_eq!(refused, Err(Refusal::TenantFull { retry_after: RETRY_AFTER }));
        assert_eq!(queue.view("b").await, None);
        assert_eq!(queue.enqueue("b", of("u")).await, Ok(true));
        assert_eq!(queue.enqueue("c", of("v")).await, Err(Refusal::Full { retry_after: RETRY_AFTER }));
    }
}
