//! The second yardstick: the writes that a run is made of, each after the one before, by clients of NATS that do nothing else. A
//! record is made, a message published; it is leased, the record changed twice, the message acknowledged.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{Context, Message, consumer::Consumer, consumer::pull, kv},
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::oneshot,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::raw::{BATCH, PATIENCE, connect, work_queue};

/// As large as the record of a run that does nothing.
const RECORD_BYTES: usize = 560;

/// Carries the revision of a record.
const REVISION: &str = "Revision";

/// Where the steps of a run go, on two connections: who submits, and who leases.
pub(crate) struct Steps {
    submitting: (Context, kv::Store),
    leasing: (Consumer<pull::Config>, kv::Store),
    next: AtomicU64,
}

/// Whoever waits for the end of a run.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<()>>>>;

fn record() -> Bytes {
    vec![b'r'; RECORD_BYTES].into()
}

impl Steps {
    pub(crate) async fn start(urls: &[String], replicas: usize) -> Self {
        let (submitting, leasing) = (connect(urls).await, connect(urls).await);
        let consumer = work_queue(&leasing, "steps", replicas).await;
        let bucket = kv::Config {
            bucket: "steps".to_owned(),
            history: 1,
            num_replicas: replicas,
            ..kv::Config::default()
        };
        let runs = submitting.create_key_value(bucket).await.expect("the servers make a bucket");
        let others = leasing.get_key_value("steps").await.expect("the bucket is there");
        Self { submitting: (submitting, runs), leasing: (consumer, others), next: AtomicU64::new(0) }
    }

    /// Runs ended a second within a window, with so many under way.
    pub(crate) async fn per_second(&self, in_flight: usize, before: Duration, window: Duration) -> f64 {
        let (waiting, over) = (Waiting::default(), Arc::new(AtomicBool::new(false)));
        let ended = Arc::new(AtomicU64::new(0));
        let (consumer, runs) = self.leasing.clone();
        // It ends when this is dropped.
        let mut leasing = JoinSet::new();
        leasing.spawn(lease(consumer, runs, waiting.clone()));
        let mut callers = JoinSet::new();
        let each = u64::MAX / 1_000_000;
        for _ in 0..in_flight {
            let ((context, runs), waiting) = (self.submitting.clone(), waiting.clone());
            let (over, ended) = (over.clone(), ended.clone());
            let first = self.next.fetch_add(1, Relaxed) * each;
            callers.spawn(async move {
                for number in first.. {
                    if over.load(Relaxed) {
                        return;
                    }
                    submit(&context, &runs, &waiting, format!("run-{number:032}")).await;
                    ended.fetch_add(1, Relaxed);
                }
            });
        }
        sleep(before).await;
        let at_first = ended.load(Relaxed);
        sleep(window).await;
        let rate = (ended.load(Relaxed) - at_first) as f64 / window.as_secs_f64();
        over.store(true, Relaxed);
        callers.join_all().await;
        rate
    }
}

/// Makes a record and a message, and waits for the end.
async fn submit(context: &Context, runs: &kv::Store, waiting: &Waiting, id: String) {
    let (sender, end) = oneshot::channel();
    waiting.lock().expect("nobody panics").insert(id.clone(), sender);
    let revision = runs.create(&id, record()).await.expect("the servers are there");
    let mut headers = HeaderMap::new();
    headers.insert(NATS_MESSAGE_ID, id.as_str());
    headers.insert(REVISION, revision.to_string().as_str());
    let sent = context.publish_with_headers("steps.bench", headers, record()).await;
    sent.expect("the servers are there").await.expect("the servers store it");
    timeout(PATIENCE, end).await.expect("it ends in time").expect("it ends");
}

/// Leases what there is, and ends it.
async fn lease(consumer: Consumer<pull::Config>, runs: kv::Store, waiting: Waiting) {
    let mut ending = JoinSet::new();
    loop {
        let leased = consumer.fetch().max_messages(BATCH).messages().await;
        let mut leased = leased.expect("the servers are there");
        while let Some(message) = leased.next().await {
            let message = message.expect("the servers are there");
            ending.spawn(end(message, runs.clone(), waiting.clone()));
        }
        while ending.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
}

async fn end(message: Message, runs: kv::Store, waiting: Waiting) {
    let headers = message.headers.as_ref().expect("it has headers");
    let id = headers.get(NATS_MESSAGE_ID).expect("it has an id").to_string();
    let mut revision = headers.get(REVISION).and_then(|text| text.as_str().parse().ok()).expect("a number");
    for _step in ["lease", "end"] {
        revision = write(&runs, &id, revision).await;
    }
    message.ack().await.expect("the servers are there");
    if let Some(caller) = waiting.lock().expect("nobody panics").remove(&id) {
        let _ = caller.send(());
    }
}

/// Changes a record. Servers whose leader has changed may refuse it, or deliver once more what was ended.
async fn write(runs: &kv::Store, id: &str, mut revision: u64) -> u64 {
    loop {
        match runs.update(id, record(), revision).await {
            Ok(written) => return written,
            Err(_) => {
                let entry = runs.entry(id).await.expect("the servers are there");
                revision = entry.expect("the record was made").revision;
            }
        }
    }
}
