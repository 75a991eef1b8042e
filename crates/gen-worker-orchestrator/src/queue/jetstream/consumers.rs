//! Messages of runs that may be leased, as the servers deliver them: one consumer for each [lane](Lane), which all
//! orchestrators share. It knows how many of its runs are leased, so that a tenant's limit holds wherever they are.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, Consumer, pull},
    stream::Stream,
};
use futures_util::{StreamExt, future::join_all};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::{
    PATIENCE,
    lanes::{Gave, LONGEST_REST, Lanes},
    names::{Lane, Names},
    records::lost,
};
use crate::{
    dispatch::Load,
    queue::{Unavailable, limits::TenantLimits},
};

/// The servers forget a consumer that nobody has used for so long: each costs them memory, and a group that agrees on it.
/// One with runs is asked now and then while a worker has a place; should it go, they are delivered anew.
const UNUSED: Duration = Duration::from_secs(600);

/// How often it is looked which lanes have runs at all.
const LOOK: Duration = LONGEST_REST;

/// How long the servers wait for a run that may come in the place of another of its tenant. It is short, as nothing else is
/// leased meanwhile.
const FULL: Duration = Duration::from_millis(20);

/// A consumer, and when it was used.
type Used = (Consumer<pull::Config>, Instant);

pub(super) struct Consumers {
    stream: Stream<()>,
    /// How long a lease lasts that is not extended.
    grace: Duration,
    /// Most runs of a lane that are leased at once.
    most: Option<usize>,
    made: Mutex<HashMap<Lane, Used>>,
    lanes: Mutex<Lanes>,
    looked: Mutex<Option<Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Consumers {
    pub(super) fn new(stream: Stream<()>, grace: Duration, limits: &TenantLimits) -> Self {
        Self {
            stream,
            grace,
            most: limits.max_running,
            made: Mutex::default(),
            lanes: Mutex::new(Lanes::new(limits, Instant::now())),
            looked: Mutex::default(),
        }
    }

    /// Whether tenants have a limit of running runs.
    pub(super) fn has_limit(&self) -> bool {
        self.most.is_some()
    }

    /// A run was taken.
    pub(super) fn heard(&self, lane: &Lane) {
        lock(&self.lanes).heard(lane, Instant::now());
    }

    /// A run was leased elsewhere.
    pub(super) fn gone(&self, lane: &Lane) {
        lock(&self.lanes).gone(lane);
    }

    /// How long it is, at most, until something is to be asked again that nobody tells of.
    pub(super) fn rest(&self) -> Duration {
        lock(&self.lanes).rest(Instant::now())
    }

    /// A run ended, so that another of its tenant may start.
    pub(super) fn freed(&self, lane: &Lane) {
        lock(&self.lanes).freed(lane);
    }

    /// A run waits for so long until it is tried again.
    pub(super) fn expect(&self, lane: &Lane, after: Duration) {
        let now = Instant::now();
        lock(&self.lanes).expect(lane, now + after, now);
    }

    /// Whether it is to be looked which lanes have runs.
    pub(super) fn is_to_look(&self) -> bool {
        lock(&self.looked).is_none_or(|looked| looked.elapsed() >= LOOK)
    }

    /// Learns which lanes have runs, and how many, as it was asked at a moment.
    pub(super) fn saw(&self, open: BTreeMap<Lane, usize>, asked: Instant) {
        let now = Instant::now();
        *lock(&self.looked) = Some(now);
        lock(&self.lanes).saw(open, asked, now);
        lock(&self.made).retain(|_, (_, used)| used.elapsed() < UNUSED / 2);
    }

    /// Messages for what the workers could take, in fair order. They are leased from here on, so whatever comes counts: it fails only
    /// where nothing came. A lane that had nothing after all leaves its places to the next.
    pub(super) async fn fetch(&self, names: &Names, workers: &[Load]) -> Result<Vec<Message>, Unavailable> {
        loop {
            let plan = lock(&self.lanes).plan(workers, Instant::now());
            let fetching = plan.iter().map(|(lane, asked)| self.fetch_of(names, lane, *asked));
            let mut messages = Vec::new();
            let mut all = Ok(());
            for fetched in join_all(fetching).await {
                match fetched {
                    Ok(fetched) => messages.extend(fetched),
                    Err(unavailable) => all = Err(unavailable),
                }
            }
            if !messages.is_empty() {
                return Ok(messages);
            }
            if plan.is_empty() || all.is_err() {
                return all.map(|()| messages);
            }
        }
    }

    /// Whether no lane is left to be asked that may have something.
    #[cfg(test)]
    pub(super) fn have_been_asked(&self) -> bool {
        lock(&self.lanes).have_been_asked()
    }

    async fn fetch_of(&self, names: &Names, lane: &Lane, asked: usize) -> Result<Vec<Message>, Unavailable> {
        let consumer = self.consumer(names, lane).await?;
        let mut messages = Vec::new();
        let all = timeout(PATIENCE, self.fetch_from(&consumer, asked, &mut messages)).await;
        let failed = match all {
            Ok(Ok(gave)) => {
                lock(&self.lanes).came(lane, gave, Instant::now());
                return Ok(messages);
            }
            Ok(Err(error)) => error,
            Err(late) => late.into(),
        };
        warn!(error = %failed, function = lane.function, "runs cannot be fetched");
        // It may have been removed with its stream.
        lock(&self.made).remove(lane);
        if messages.is_empty() { Err(Unavailable) } else { Ok(messages) }
    }

    /// Adds what there is, up to what was asked for.
    async fn fetch_from(
        &self,
        consumer: &Consumer<pull::Config>,
        asked: usize,
        messages: &mut Vec<Message>,
    ) -> Result<Gave, async_nats::Error> {
        let fetch = consumer.fetch();
        let (fetch, asked, room) = match self.most {
            None => (fetch, asked, usize::MAX),
            Some(most) => {
                let info = consumer.get_info().await?;
                if info.num_pending == 0 && info.num_ack_pending == 0 {
                    return Ok(Gave { asked, ..Gave::default() });
                }
                let room = most.saturating_sub(info.num_ack_pending);
                // A request beyond the limit would wait until a run ends. One that was leased before may come all the same.
                (fetch.expires(FULL), asked.min(room.max(1)), room)
            }
        };
        let mut fetched = fetch.max_messages(asked).messages().await?;
        let mut gave = Gave { asked, ..Gave::default() };
        while let Some(message) = fetched.next().await {
            let message = message?;
            if let Ok(info) = message.info() {
                gave.runs += 1;
                gave.behind = usize::try_from(info.pending).unwrap_or(usize::MAX);
                gave.again |= info.delivered > 1;
            }
            messages.push(message);
        }
        gave.full = gave.runs >= room;
        Ok(gave)
    }

    /// A lane's consumer, made if need be: making it twice at once does no harm.
    async fn consumer(&self, names: &Names, lane: &Lane) -> Result<Consumer<pull::Config>, Unavailable> {
        if let Some((made, used)) = lock(&self.made).get_mut(lane)
            && used.elapsed() < UNUSED / 2
        {
            *used = Instant::now();
            return Ok(made.clone());
        }
        let wanted = pull::Config {
            durable_name: Some(lane.consumer()),
            filter_subject: names.runs_of(lane),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.grace,
            // How often a run is tried is the record's business.
            max_deliver: -1,
            max_ack_pending: self.most.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX)),
            inactive_threshold: UNUSED,
            // Servers that all lose it deliver everything anew, and who has a run still has it.
            memory_storage: true,
            ..Default::default()
        };
        let now = Instant::now();
        let made = self.stream.create_consumer(wanted).await;
        let made = made.map_err(|e| lost("a consumer cannot be made")(&e))?;
        lock(&self.made).insert(lane.clone(), (made.clone(), now));
        Ok(made)
    }
}
