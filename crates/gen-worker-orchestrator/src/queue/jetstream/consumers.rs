//! Messages of runs that may be leased, as the servers deliver them: one consumer for each function, which all
//! orchestrators share.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{
    Message,
    consumer::{AckPolicy, Consumer, pull},
    stream::Stream,
};
use futures_util::{StreamExt, future::join_all};
use tokio::time::timeout;
use tracing::warn;

use super::{
    PATIENCE,
    names::{Names, token},
    records::lost,
};
use crate::{dispatch::Load, queue::Unavailable};

/// Most messages asked for at once, of one function.
const BATCH: usize = 256;

pub(super) struct Consumers {
    stream: Stream<()>,
    /// How long a lease lasts that is not extended.
    grace: Duration,
    known: Mutex<HashMap<String, Consumer<pull::Config>>>,
    turn: AtomicUsize,
}

impl Consumers {
    pub(super) fn new(stream: Stream<()>, grace: Duration) -> Self {
        Self { stream, grace, known: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Consumer<pull::Config>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Messages for what the workers could take. They are leased from here on, so whatever comes counts: it fails only
    /// where nothing came.
    pub(super) async fn fetch(&self, names: &Names, workers: &[Load]) -> Result<Vec<Message>, Unavailable> {
        let shares = shares(workers, self.turn.fetch_add(1, Ordering::Relaxed));
        let fetching = shares.iter().map(|(function, most)| self.fetch_of(names, function, *most));
        let mut messages = Vec::new();
        let mut all = Ok(());
        for fetched in join_all(fetching).await {
            match fetched {
                Ok(fetched) => messages.extend(fetched),
                Err(unavailable) => all = Err(unavailable),
            }
        }
        if messages.is_empty() { all.map(|()| messages) } else { Ok(messages) }
    }

    async fn fetch_of(
        &self,
        names: &Names,
        function: &str,
        most: usize,
    ) -> Result<Vec<Message>, Unavailable> {
        let consumer = self.consumer(names, function).await?;
        let mut messages = Vec::new();
        let all = async {
            let mut fetched = consumer.fetch().max_messages(most.min(BATCH)).messages().await?;
            while let Some(message) = fetched.next().await {
                messages.push(message?);
            }
            Ok::<_, async_nats::Error>(())
        };
        match timeout(PATIENCE, all).await {
            Ok(Ok(())) => return Ok(messages),
            Ok(Err(error)) => {
                // It may have been removed with its stream.
                self.known().remove(function);
                warn!(%error, function, "runs cannot be fetched");
            }
            Err(_) => warn!(function, "runs cannot be fetched in time"),
        }
        if messages.is_empty() { Err(Unavailable) } else { Ok(messages) }
    }

    /// A function's consumer, made if need be: making it twice at once does no harm.
    async fn consumer(&self, names: &Names, function: &str) -> Result<Consumer<pull::Config>, Unavailable> {
        if let Some(known) = self.known().get(function) {
            return Ok(known.clone());
        }
        let wanted = pull::Config {
            durable_name: Some(token(function)),
            filter_subject: names.runs_of(function),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.grace,
            // How often a run is tried is the record's business.
            max_deliver: -1,
            max_ack_pending: -1,
            ..Default::default()
        };
        let made = self.stream.create_consumer(wanted).await;
        let made = made.map_err(|e| lost("a consumer cannot be made")(&e))?;
        self.known().insert(function.to_owned(), made.clone());
        Ok(made)
    }
}

/// How many runs of each function to ask for: all have the same share of what the workers could take, and each is the
/// first in its `turn`. Whoever leases asks again, until nothing comes.
fn shares(workers: &[Load], turn: usize) -> Vec<(String, usize)> {
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
        shares.rotate_left(turn % count);
    }
    shares
}
