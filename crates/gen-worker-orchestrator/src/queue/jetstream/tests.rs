//! Against real servers, also while they are away.

use std::sync::Arc;

use async_nats::Subscriber;
use futures_util::StreamExt;
use gen_worker_testkit::NatsServers;
use tokio::task::JoinSet;

mod fair;

use super::*;
use crate::queue::{
    conformance::{GRACE, conformance, next, worker},
    limits::RETRY_AFTER,
};

async fn open() -> (Arc<dyn Queue>, (JoinSet<()>, NatsServers)) {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let running = running(&[&queue]);
    (queue, (running, servers))
}

async fn engine(servers: &NatsServers, limits: TenantLimits) -> Arc<JetStream> {
    let config = NatsConfig::of(servers.urls());
    Arc::new(JetStream::open(&config, &limits, GRACE).await.unwrap())
}

conformance!(open());

/// What everybody else says from now on: an answer to what is asked next shows that the server knows who listens.
async fn everything_said(to: &JetStream) -> Subscriber {
    let heard = to.client.subscribe(to.names.everything_said()).await.unwrap();
    to.stats().await.unwrap();
    heard
}

fn running(queues: &[&Arc<JetStream>]) -> JoinSet<()> {
    let queues = queues.iter().map(|queue| Arc::clone(queue));
    queues.map(|queue| async move { queue.run().await }).collect()
}

#[tokio::test]
async fn what_one_orchestrator_began_another_goes_on_with() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
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
    assert_eq!(there.adopt(&active, "w1").await, Ok(Some("f".to_owned())));
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
    assert_eq!(here.outcome("r").await, Ok(Some(Some(Ok(output)))));
}

fn result(request: &v1::TaskExecutionRequest, retryable: bool) -> v1::TaskExecutionResult {
    v1::TaskExecutionResult {
        run_id: request.run_id.clone(),
        success: !retryable,
        retryable,
        attempt: request.attempt,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_run_that_moved_on_elsewhere_is_not_held_by_what_is_said_here() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    // Deaf, so that nobody but the stale result tells it.
    let extending = Arc::clone(&here);
    let mut running = running(&[&there]);
    running.spawn(async move {
        loop {
            extending.extend().await;
            sleep(GRACE / 3).await;
        }
    });
    here.enqueue("r", RunRequest::of("f")).await.unwrap();
    let old = next(here.as_ref()).await;
    let active = v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 };
    assert_eq!(there.adopt(&active, "w1").await, Ok(Some("f".to_owned())));
    there.settle(result(&old, true), "w1", true).await.unwrap();
    here.settle(result(&old, false), "w1", true).await.unwrap();
    assert_eq!(next(there.as_ref()).await.attempt, 2);
    // Its second worker is lost, and nobody extends its lease.
    there.lose(vec![("r".to_owned(), 2)]).await;
    assert_eq!(next(there.as_ref()).await.attempt, 3);
}

#[tokio::test]
async fn who_hears_that_another_has_a_run_interrupts_its_own_worker() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    // It hears, but extends nothing: a process that was stopped for a while.
    let mut running = running(&[&there]);
    let hearing = Arc::clone(&here);
    let mut heard = everything_said(&here).await;
    running.spawn(async move {
        while let Some(message) = heard.next().await {
            hearing.hear(message);
        }
    });
    here.enqueue("r", RunRequest::of("f")).await.unwrap();
    assert_eq!(next(here.as_ref()).await.attempt, 1);
    assert_eq!(next(there.as_ref()).await.attempt, 2);
    assert_eq!(timeout(PATIENCE, here.interrupted()).await.unwrap(), ("r".to_owned(), 1));
    assert!(here.leases.acks().is_empty());
}

#[tokio::test]
async fn a_worker_that_went_elsewhere_takes_its_runs_along() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    let mut heard = everything_said(&here).await;
    here.enqueue("r", RunRequest::of("f")).await.unwrap();
    next(here.as_ref()).await;
    let active = v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 };
    there.adopt(&active, "w1").await.unwrap();
    here.hear(timeout(PATIENCE, heard.next()).await.unwrap().unwrap());
    assert!(here.leases.acks().is_empty() && !there.leases.acks().is_empty());
}

#[tokio::test]
async fn a_run_that_another_took_meanwhile_is_not_withdrawn() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    // Here a record is made, but there was no room for the run; then there was.
    let mut record = Record::new("r", RunRequest::of("f"), 1);
    record.request.payload = Bytes::new();
    let made = here.records.create(&Entry::new(record, false, 0)).await.unwrap().unwrap();
    assert_eq!(there.enqueue("r", RunRequest::of("f")).await, Ok(false));
    here.records.withdraw(&made).await;
    assert_eq!(next(here.as_ref()).await.run_id, "r");
    // And the other way round: what is withdrawn first is taken as new.
    let record = Record::new("s", RunRequest::of("f"), 1);
    let made = here.records.create(&Entry::new(record, false, 0)).await.unwrap().unwrap();
    here.records.withdraw(&made).await;
    assert_eq!(there.enqueue("s", RunRequest::of("f")).await, Ok(true));
}

#[tokio::test]
async fn while_the_servers_are_away_no_run_is_said_to_be_unknown() {
    let mut servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let other = engine(&servers, TenantLimits::default()).await;
    for run_id in ["over", "r"] {
        queue.enqueue(run_id, RunRequest::of("f")).await.unwrap();
    }
    let over = next(queue.as_ref()).await;
    queue.settle(result(&over, false), "w1", true).await.unwrap();
    let run = next(queue.as_ref()).await;
    let active = v1::ActiveRun { run_id: "r".to_owned(), attempt: 1 };
    servers.kill(0).await;
    let (adopted, view, outcome, watch, events, scope, canceled, list, stats) = tokio::join!(
        queue.adopt(&active, "w1"),
        other.view("r"),
        other.outcome("r"),
        other.watch("r"),
        other.events("r", 0),
        other.file_scope(&run.file_token),
        queue.cancel("r"),
        queue.list(None, 9),
        queue.stats(),
    );
    assert!(!queue.is_ready());
    // Nothing that waits is another thing than not knowing.
    assert_eq!(stats, Err(Unavailable));
    assert_eq!((adopted, canceled), (Err(Unavailable), Err(Unavailable)));
    assert_eq!((view, list, outcome), (Err(Unavailable), Err(Unavailable), Err(Unavailable)));
    assert!(watch.is_err() && events.is_err() && scope.is_err());
    // What was heard is told without them, and so is an end that was written here.
    let heard = queue.events("r", 0).await.unwrap().unwrap().0.events;
    assert_eq!(heard.iter().map(|event| &*event.event_type).collect::<Vec<_>>(), ["queued", "started"]);
    assert_eq!(queue.outcome("over").await, Ok(Some(Some(Ok(Bytes::new())))));
    assert_eq!(other.outcome("over").await, Err(Unavailable));
    servers.restart(0).await;
    let adopted = timeout(4 * PATIENCE, async {
        loop {
            if let Ok(adopted) = queue.adopt(&active, "w1").await {
                return adopted;
            }
        }
    });
    assert_eq!(adopted.await.unwrap().as_deref(), Some("f"));
}

#[tokio::test]
async fn the_servers_own_limits_are_the_limits_of_a_fleet() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let limits = TenantLimits { max_queued: Some(1), ..Default::default() };
    let config = NatsConfig { max_open: 2, ..NatsConfig::of(servers.urls()) };
    let queue = JetStream::open(&config, &limits, GRACE).await.unwrap();
    let of = |tenant: &str| RunRequest { tenant_id: Some(tenant.to_owned()), ..RunRequest::of("f") };
    assert_eq!(queue.enqueue("a", of("t")).await, Ok(true));
    let refused = queue.enqueue("b", of("t")).await;
    assert_eq!(refused, Err(Refusal::TenantFull { retry_after: RETRY_AFTER }));
    assert_eq!(queue.view("b").await, Ok(None));
    assert_eq!(queue.enqueue("b", of("u")).await, Ok(true));
    assert_eq!(queue.enqueue("c", of("v")).await, Err(Refusal::Full { retry_after: RETRY_AFTER }));
}

/// What a run has said after an event, as far as there is something.
async fn heard(queue: &JetStream, after: u64) -> Vec<(u64, String)> {
    let heard = timeout(PATIENCE, async {
        loop {
            let (batch, _) = queue.events("r", after).await.unwrap().unwrap();
            if !batch.events.is_empty() {
                return batch.events.into_iter().map(|event| (event.id, event.event_type)).collect();
            }
            tokio::task::yield_now().await;
        }
    });
    heard.await.unwrap()
}

#[tokio::test]
async fn whoever_goes_on_elsewhere_hears_what_it_has_not_heard_and_nothing_twice() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let _running = running(&[&here]);
    let said = |event_type: &str| v1::WorkerEvent {
        run_id: "r".to_owned(),
        event_type: event_type.to_owned(),
        payload_json: Bytes::from_static(b"{}"),
    };
    here.enqueue("r", RunRequest::of("f")).await.unwrap();
    let run = next(here.as_ref()).await;
    here.event(said("first"));
    // It has not heard how the run began.
    let there = engine(&servers, TenantLimits::default()).await;
    let mut hears = everything_said(&there).await;
    here.event(said("second"));
    there.hear(timeout(PATIENCE, hears.next()).await.unwrap().unwrap());
    let all = heard(&here, 0).await;
    assert_eq!(heard(&there, 0).await, all[3..]);
    let (second, _) = all[3];
    here.event(said("third"));
    let third = heard(&here, second).await;
    assert_eq!(third[0].1, "third");
    there.hear(timeout(PATIENCE, hears.next()).await.unwrap().unwrap());
    assert_eq!(heard(&there, second).await, third);
    // Its end is beyond all that it said.
    here.settle(result(&run, false), "w1", true).await.unwrap();
    let (_, end) = here.events("r", third[0].0).await.unwrap().unwrap();
    assert!(end.unwrap().0 > third[0].0);
}

/// How many runs of a function are in the stream.
async fn open_runs(queue: &JetStream, function: &str) -> usize {
    queue.stats().await.unwrap().get(function).map_or(0, |stats| stats.waiting + stats.running)
}

#[tokio::test]
async fn the_run_of_a_lost_worker_waits_as_long_as_after_any_failure() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let mut asked = RunRequest::of("f");
    asked.retry.first = Duration::from_secs(3600);
    asked.retry.longest = asked.retry.first;
    queue.enqueue("r", asked).await.unwrap();
    next(queue.as_ref()).await;
    queue.lose(vec![("r".to_owned(), 1)]).await;
    let lost = timeout(PATIENCE, async {
        loop {
            assert!(queue.lease(&mut [worker(1, 1)]).await.unwrap().is_empty());
            let view = queue.view("r").await.unwrap().unwrap();
            if view.attempt == 2 {
                return view.state;
            }
        }
    });
    assert_eq!(lost.await.unwrap(), crate::run::RunState::Queued);
    assert_eq!(heard(&queue, 0).await.last().unwrap().1, "attempt_failed");
    assert_eq!(queue.cancel("r").await, Ok(Some(Canceled::Waiting)));
    assert_eq!(open_runs(&queue, "f").await, 0);
}

#[tokio::test]
async fn a_canceled_run_leaves_nothing_in_the_queue() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let large = RunRequest { payload: vec![b'x'; 1 << 20].into(), ..RunRequest::of("f") };
    for run_id in ["before", "r", "after"] {
        queue.enqueue(run_id, large.clone()).await.unwrap();
    }
    // Another has taken others before that it knows nothing of.
    let there = engine(&servers, TenantLimits::default()).await;
    assert_eq!(there.cancel("r").await, Ok(Some(Canceled::Waiting)));
    assert_eq!(open_runs(&queue, "f").await, 2);
    let payloads = queue.records.blobs.list().await.unwrap().filter(|object| {
        let there = object.as_ref().is_ok_and(|object| object.name.starts_with("in.r."));
        std::future::ready(there)
    });
    assert_eq!(payloads.count().await, 0);
    for run_id in ["before", "after"] {
        assert_eq!(next(queue.as_ref()).await.run_id, run_id);
    }
}

/// Waits until the servers have forgotten which runs were published.
async fn forget_repetitions(queue: &JetStream) {
    let mut config = queue.stream.get_info().await.unwrap().config;
    config.duplicate_window = Duration::from_millis(100);
    queue.context.update_stream(config).await.unwrap();
    let probe = async || {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, "probe");
        let to = queue.names.run(&RunRequest::of("probe"));
        let sent = queue.context.publish_with_headers(to, headers, Bytes::new()).await;
        sent.unwrap().await.unwrap().duplicate
    };
    assert!(!probe().await);
    let forgotten = timeout(PATIENCE, async { while probe().await {} });
    forgotten.await.unwrap();
}

#[tokio::test]
async fn a_run_that_is_asked_for_again_much_later_keeps_its_place() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    for run_id in ["first", "second"] {
        queue.enqueue(run_id, RunRequest::of("f")).await.unwrap();
    }
    forget_repetitions(&queue).await;
    assert_eq!(queue.enqueue("first", RunRequest::of("f")).await, Ok(false));
    assert_eq!(open_runs(&queue, "f").await, 2);
    assert_eq!(next(queue.as_ref()).await.run_id, "first");
}

#[tokio::test]
async fn a_message_that_is_no_run_is_removed() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let to = queue.names.run(&RunRequest::of("f"));
    queue.context.publish(to, Bytes::from_static(b"?")).await.unwrap().await.unwrap();
    queue.enqueue("r", RunRequest::of("f")).await.unwrap();
    assert_eq!(next(queue.as_ref()).await.run_id, "r");
    queue.client.flush().await.unwrap();
    assert_eq!(open_runs(&queue, "f").await, 1);
}

#[tokio::test]
async fn everything_is_kept_on_as_many_servers_as_the_last_to_start_was_told() {
    let servers = NatsServers::start(NatsServers::program(), 3).await;
    for (replicas, hours) in [(1, 5), (3, 7)] {
        let max_age = Duration::from_secs(3600 * hours);
        let config = NatsConfig { replicas, max_age, ..NatsConfig::of(servers.urls()) };
        let queue = JetStream::open(&config, &TenantLimits::default(), GRACE).await.unwrap();
        for stream in ["gen-worker-queue", "KV_gen-worker-runs", "OBJ_gen-worker-blobs"] {
            let kept = queue.context.get_stream(stream).await.unwrap().cached_info().config.clone();
            assert_eq!((kept.num_replicas, kept.max_age), (replicas, max_age), "{stream}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lost_the_others_is_not_believed_and_left() {
    let servers = NatsServers::start_apart(NatsServers::program(), 3).await;
    let fleet = |urls| NatsConfig { replicas: 3, ..NatsConfig::of(urls) };
    let open = async |urls| {
        let opened = JetStream::open(&fleet(urls), &TenantLimits::default(), GRACE).await;
        Arc::new(opened.unwrap())
    };
    let here = open(servers.urls()).await;
    let lost: usize = here.client.server_info().server_name.trim_start_matches('n').parse().unwrap();
    let mut urls = servers.urls();
    urls.remove(lost);
    let there = open(urls).await;
    let _running = running(&[&here, &there]);
    servers.cut_off(lost, true);
    let mut ready = here.ready.subscribe();
    timeout(12 * PATIENCE, ready.wait_for(|is_ready| !is_ready)).await.unwrap().unwrap();
    assert!(!here.is_ready());
    let taken = timeout(12 * PATIENCE, async {
        while there.enqueue("r", RunRequest::of("f")).await == Err(Refusal::Unavailable) {}
    });
    taken.await.unwrap();
    // It may be asked again before another is.
    let found = timeout(12 * PATIENCE, async {
        loop {
            if let Ok(view) = here.view("r").await {
                return view;
            }
        }
    });
    let run = found.await.unwrap().expect("nobody says that there is no such run");
    assert_eq!(run.state, crate::run::RunState::Queued);
    timeout(12 * PATIENCE, ready.wait_for(|is_ready| *is_ready)).await.unwrap().unwrap();
}

#[tokio::test]
async fn servers_that_agree_and_take_no_runs_are_not_enough_to_be_ready() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    let _running = running(&[&queue]);
    let mut ready = queue.ready.subscribe();
    queue.context.delete_stream(queue.names.stream()).await.unwrap();
    timeout(PATIENCE, ready.wait_for(|is_ready| !is_ready)).await.unwrap().unwrap();
    assert!(!queue.is_ready());
    queue.records.agree().await.unwrap();
}

#[tokio::test]
async fn a_listing_reads_what_has_changed_since_the_last() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let queue = engine(&servers, TenantLimits::default()).await;
    for number in 0..50 {
        queue.enqueue(&format!("r{number}"), RunRequest::of("f")).await.unwrap();
    }
    assert_eq!(queue.list(None, usize::MAX).await.unwrap().len(), 50);
    assert_eq!(queue.cancel("r7").await, Ok(Some(Canceled::Waiting)));
    let messages = || queue.client.statistics().in_messages.load(std::sync::atomic::Ordering::Relaxed);
    let before = messages();
    let runs = queue.list(None, usize::MAX).await.unwrap();
    assert!(messages() - before < 10);
    assert_eq!((runs.len(), runs[42].state), (50, crate::run::RunState::Canceled));
    assert_eq!((&*runs[42].run_id, &*runs[0].run_id), ("r7", "r49"));
}

#[tokio::test]
async fn servers_that_lost_track_of_what_they_delivered_take_no_run_from_its_worker() {
    let mut servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    let _running = running(&[&here, &there]);
    there.enqueue("r", RunRequest::of("f")).await.unwrap();
    let run = next(there.as_ref()).await;
    servers.kill(0).await;
    servers.restart(0).await;
    let leased = timeout(4 * PATIENCE, async {
        // The servers deliver what comes later after it.
        while there.enqueue("s", RunRequest::of("f")).await.is_err() {}
        loop {
            match here.lease(&mut [worker(2, 2)]).await {
                Ok(leases) if !leases.is_empty() => return leases,
                _ => here.changed().await,
            }
        }
    });
    let leased = leased.await.unwrap();
    assert_eq!(leased.iter().map(|lease| &*lease.request.run_id).collect::<Vec<_>>(), ["s"]);
    let again = async {
        while here.lease(&mut [worker(2, 2)]).await.is_ok_and(|leases| leases.is_empty()) {
            here.changed().await;
        }
    };
    assert!(timeout(4 * GRACE, again).await.is_err(), "it was leased once more");
    there.settle(result(&run, false), "w1", true).await.unwrap();
    let view = here.view("r").await.unwrap().unwrap();
    assert_eq!((view.state, view.attempt), (crate::run::RunState::Succeeded, 1));
}

#[tokio::test]
async fn a_run_that_was_taken_elsewhere_is_looked_for_when_it_is_heard_of() {
    let servers = NatsServers::start(NatsServers::program(), 1).await;
    let here = engine(&servers, TenantLimits::default()).await;
    let there = engine(&servers, TenantLimits::default()).await;
    let mut heard = everything_said(&there).await;
    here.enqueue("r", RunRequest::of("f")).await.unwrap();
    there.hear(timeout(PATIENCE, heard.next()).await.unwrap().unwrap());
    timeout(PATIENCE, there.changed.notified()).await.unwrap();
}
