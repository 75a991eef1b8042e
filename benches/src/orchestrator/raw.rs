//! The yardstick: the same payload as a message of a work-queue stream, published, leased and acknowledged, by clients of
//! NATS that do nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::jetstream::{
    self, Context,
    consumer::{AckPolicy, Consumer, pull},
    stream::{Config, RetentionPolicy},
};
use futures_util::StreamExt;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::callers::payload;

/// Longest wait for servers that have just started to make a stream.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(100);

/// As many as an orchestrator asks for at once.
pub(crate) const BATCH: usize = 256;

/// A stream and its consumer, each on a connection of its own.
pub(crate) struct Raw {
    publisher: Context,
    consumer: Consumer<pull::Config>,
}

impl Raw {
    pub(crate) async fn start(urls: &[String], replicas: usize) -> Self {
        let publisher = connect(urls).await;
        let consumer = work_queue(&connect(urls).await, "raw", replicas).await;
        Self { publisher, consumer }
    }

    /// Messages acknowledged a second within a window, with so many published and not yet acknowledged.
    pub(crate) async fn per_second(&self, in_flight: usize, before: Duration, window: Duration) -> f64 {
        let (room, acknowledged) = (Arc::new(Semaphore::new(in_flight)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        tasks.spawn(lease(self.consumer.clone(), room.clone(), acknowledged.clone()));
        tasks.spawn(publish(self.publisher.clone(), room.clone()));
        sleep(before).await;
        let at_first = acknowledged.load(Relaxed);
        sleep(window).await;
        let rate = (acknowledged.load(Relaxed) - at_first) as f64 / window.as_secs_f64();
        // What is under way ends, so that the next round begins with nothing.
        room.close();
        let _ = timeout(PATIENCE, async { while tasks.join_next().await.is_some() {} }).await;
        rate
    }
}

pub(crate) async fn connect(urls: &[String]) -> Context {
    jetstream::new(async_nats::connect(urls.to_vec()).await.expect("the servers take clients"))
}

/// A stream of what is published below a name, and its consumer.
pub(crate) async fn work_queue(leasing: &Context, name: &str, replicas: usize) -> Consumer<pull::Config> {
    let wanted = Config {
        name: name.to_owned(),
        subjects: vec![format!("{name}.>")],
        retention: RetentionPolicy::WorkQueue,
        num_replicas: replicas,
        ..Config::default()
    };
    let made = async {
        loop {
            match leasing.create_stream(wanted.clone()).await {
                Ok(stream) => return stream,
                Err(_) => sleep(AGAIN).await,
            }
        }
    };
    let stream = timeout(PATIENCE, made).await.expect("the servers make a stream");
    let leased = pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: AckPolicy::Explicit,
        max_ack_pending: -1,
        ..pull::Config::default()
    };
    stream.create_consumer(leased).await.expect("the servers make a consumer")
}

/// Publishes as long as there is room, and waits for the servers to have it.
async fn publish(publisher: Context, room: Arc<Semaphore>) {
    let payload = bytes::Bytes::from(payload());
    let mut stored = JoinSet::new();
    while let Ok(permit) = room.acquire().await {
        permit.forget();
        let sent = publisher.publish("raw.bench", payload.clone()).await.expect("the servers are there");
        stored.spawn(async move { sent.await.expect("the servers store it") });
        while stored.try_join_next().is_some() {}
    }
    stored.join_all().await;
}

/// Leases what there is and acknowledges it, until nothing comes and nobody publishes.
async fn lease(consumer: Consumer<pull::Config>, room: Arc<Semaphore>, acknowledged: Arc<AtomicU64>) {
    loop {
        let leased = consumer.fetch().max_messages(BATCH).messages().await;
        let mut leased = leased.expect("the servers are there");
        let mut count = 0;
        while let Some(message) = leased.next().await {
            let message = message.expect("the servers are there");
            message.ack().await.expect("the servers are there");
            count += 1;
        }
        acknowledged.fetch_add(count, Relaxed);
        room.add_permits(count as usize);
        if count == 0 {
            if room.is_closed() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}
