//! What the end of a stream leads to: which peer is dialled next, after how long, and when the worker gives up.

use std::time::{Duration, Instant};

use gen_worker::{Call, Function, RuntimeConfig, Worker, WorkerError, WorkerFailure};
use gen_worker_runtime::ConnectionError;
use gen_worker_testkit::{FakeScheduler, FaultProxy};
use gen_worker_tests::{Embedded, WorkerProcess, WorkerSettings};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::Status;

use super::{CONFORMANCE, worker};

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);

fn not_leader(leader: &FakeScheduler) -> Status {
    Status::failed_precondition(format!("not_leader:{}", leader.addr()))
}

/// The lines of a worker's log that say this.
fn lines(worker: &WorkerProcess, message: &str) -> Vec<Value> {
    let lines = worker.log();
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["message"] == message).collect()
}

async fn nothing_comes_to(scheduler: &FakeScheduler) {
    assert!(timeout(Duration::ZERO, scheduler.accept()).await.is_err(), "a stream was opened");
}

#[tokio::test]
async fn two_peers_that_answer_and_point_at_each_other_make_the_worker_wait() {
    let (one, other) = (FakeScheduler::start().await, FakeScheduler::start().await);
    let _worker = WorkerSettings::new(CONFORMANCE, &one).set("RECONNECT_DELAY", "0.7").start();
    for _ in 0..3 {
        one.accept().await.fail(not_leader(&other)).await;
        other.accept().await.fail(not_leader(&one)).await;
    }
    let since = Instant::now();
    let _stream = one.accept().await;
    assert!(since.elapsed() >= Duration::from_millis(650), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_redirect_that_is_not_allowed_is_not_followed() {
    let (follower, leader) = (FakeScheduler::start().await, FakeScheduler::start().await);
    follower.refuse_next(not_leader(&leader));
    let mut worker = WorkerSettings::new(CONFORMANCE, &follower)
        .set("AUTH_TOKEN", "hunter2")
        .set("SCHEDULER_REDIRECT_ALLOW", "leader.example, 127.0.0.1:1")
        .start();
    let mut stream = follower.accept().await;
    nothing_comes_to(&leader).await;
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    worker.ended().await;
    let failed = &lines(&worker, "not connected")[0];
    assert!(failed["error"].as_str().unwrap().contains("SCHEDULER_REDIRECT_ALLOW"), "{failed}");
}

#[tokio::test]
async fn the_token_goes_along_to_a_leader_that_is_allowed() {
    let (follower, leader) = (FakeScheduler::start().await, FakeScheduler::start().await);
    follower.refuse_next(not_leader(&leader));
    let _worker = WorkerSettings::new(CONFORMANCE, &follower)
        .set("AUTH_TOKEN", "hunter2")
        .set("SCHEDULER_REDIRECT_ALLOW", leader.addr().to_string())
        .start();
    assert_eq!(leader.accept().await.authorization(), Some("Bearer hunter2"));
}

/// Refuses this many streams of a worker that waits 50 ms after each, at most.
fn refusing(scheduler: &FakeScheduler, times: usize, status: &Status) {
    for _ in 0..times {
        scheduler.refuse_next(status.clone());
    }
}

#[tokio::test]
async fn a_worker_that_may_not_connect_ends() {
    let scheduler = FakeScheduler::start().await;
    let denied = Status::permission_denied("revoked");
    refusing(&scheduler, 4, &denied);
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("RECONNECT_MAX_DELAY", "0.05").start();
    let mut stream = scheduler.accept().await;
    refusing(&scheduler, 5, &denied);
    stream.fail(Status::unavailable("restarting")).await;
    assert_eq!(worker.ended().await.code(), Some(6));
    assert!(worker.log().contains("does not let this worker connect"), "{}", worker.log());
    nothing_comes_to(&scheduler).await;
}

#[tokio::test]
async fn a_refused_token_and_an_absent_scheduler_are_retried_for_ever() {
    for status in [Status::unauthenticated("expired"), Status::unavailable("starting"), Status::internal("x")]
    {
        let scheduler = FakeScheduler::start().await;
        refusing(&scheduler, 8, &status);
        let since = Instant::now();
        let _worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("RECONNECT_MAX_DELAY", "0.05").start();
        scheduler.accept().await;
        assert!(since.elapsed() >= Duration::from_millis(8 * 50), "{:?}", since.elapsed());
    }
}

#[tokio::test]
async fn a_worker_whose_place_was_taken_backs_off_longer_and_says_so() {
    let scheduler = FakeScheduler::start().await;
    let worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("RECONNECT_MAX_DELAY", "0.6").start();
    scheduler.accept().await.fail(Status::aborted("superseded by a newer stream")).await;
    let since = Instant::now();
    scheduler.accept().await;
    assert!(since.elapsed() >= Duration::from_millis(550), "{:?}", since.elapsed());
    assert_eq!(lines(&worker, "another worker has this one's identity").len(), 1);
}

#[tokio::test]
async fn a_reconnect_is_one_line_that_says_where_the_time_went() {
    let (scheduler, mut worker, mut stream) = worker(&[]).await;
    stream.fail(Status::unavailable("restarting")).await;
    let mut stream = scheduler.accept().await;
    // It is connected once it has heard something.
    stream.run("r", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    worker.ended().await;
    let connected = lines(&worker, "connected");
    assert_eq!(connected.len(), 2, "{}", worker.log());
    let reconnected = &connected[1];
    assert_eq!(reconnected["cause"], "Unavailable: restarting");
    assert_eq!(reconnected["attempts"], 1);
    assert!(reconnected["waiting_ms"].as_u64().unwrap() >= 50, "{reconnected}");
    for field in ["uptime_ms", "dialling_ms", "gap_ms"] {
        assert!(reconnected[field].is_u64(), "{field} in {reconnected}");
    }
}

#[tokio::test]
async fn an_attempt_that_failed_is_one_line_too() {
    let mut scheduler = FakeScheduler::start().await;
    scheduler.stop().await;
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("MAX_RECONNECT_ATTEMPTS", "3").start();
    worker.ended().await;
    let failed = lines(&worker, "not connected");
    assert_eq!(failed.len(), 3, "{}", worker.log());
    assert!(failed[0]["error"].as_str().unwrap().contains("refused"), "{}", failed[0]);
    assert_eq!((&failed[2]["attempts"], &failed[2]["cause"]), (&3.into(), &"the worker started".into()));
}

/// A worker in this process with one function, and these waits.
fn embedded(addresses: &str, adjust: impl FnOnce(&mut RuntimeConfig)) -> Embedded {
    let mut settings = Embedded::settings(addresses);
    adjust(&mut settings);
    let idle = Function::builder::<Value>("idle", "tests")
        .asynchronous(|_: Call<Value>| async { Ok::<_, WorkerError>(()) })
        .expect("its types have schemas");
    Embedded::start(Worker::builder(settings).function(idle))
}

#[tokio::test]
async fn failures_are_forgotten_only_after_a_time_of_health() {
    let scheduler = FakeScheduler::start().await;
    let address = scheduler.addr().to_string();
    let limit = |config: &mut RuntimeConfig| config.max_reconnect_attempts = Some(3.try_into().unwrap());
    let worker = embedded(&address, limit);
    for _ in 0..3 {
        scheduler.accept().await.fail(Status::unavailable("restarting")).await;
    }
    let ended = worker.ended().await;
    let Err(WorkerFailure::Connection(ConnectionError::Exhausted { attempts: 3, .. })) = ended else {
        panic!("{ended:?}");
    };

    let worker = embedded(&address, |config| {
        limit(config);
        config.stable = Duration::ZERO;
    });
    for _ in 0..6 {
        scheduler.accept().await.fail(Status::unavailable("restarting")).await;
    }
    worker.leave(scheduler.accept().await).await;
}

#[tokio::test]
async fn a_peer_that_never_speaks_http2_is_left_for_the_next() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let next = FakeScheduler::start().await;
    let addresses = format!("{},{}", mute.local_addr().unwrap(), next.addr());
    let worker = embedded(&addresses, |config| {
        // Connected by its age, which must not make it the address to start with.
        config.connected_after = Duration::from_millis(50);
        config.keepalive_interval = Duration::from_millis(200);
        config.keepalive_timeout = Duration::from_millis(100);
    });
    let _kept = mute.accept().await.unwrap();
    let since = Instant::now();
    let stream = next.accept().await;
    assert!(since.elapsed() >= Duration::from_millis(290), "{:?}", since.elapsed());
    worker.leave(stream).await;
}

/// A peer that answers the preface and pings, and says nothing else. Returns after as many pings.
async fn answer_pings(peer: &mut TcpStream, mut pings: u32) {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    let header = |length: u8, kind: u8, flags: u8| [0, 0, length, kind, flags, 0, 0, 0, 0];
    peer.read_exact(&mut [0; 24]).await.expect("the worker is there");
    peer.write_all(&header(0, SETTINGS, 0)).await.expect("the worker is there");
    while pings > 0 {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await.expect("the worker is there");
        let mut body = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        peer.read_exact(&mut body).await.expect("the worker is there");
        match (head[3], head[4]) {
            (SETTINGS, 0) => peer.write_all(&header(0, SETTINGS, 1)).await.expect("the worker is there"),
            (PING, 0) => {
                peer.write_all(&[&header(8, PING, 1)[..], &body].concat())
                    .await
                    .expect("the worker is there");
                pings -= 1;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_scheduler_that_only_answers_pings_is_healthy() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = embedded(&silent.local_addr().unwrap().to_string(), |config| {
        config.keepalive_interval = Duration::from_millis(20);
        config.keepalive_timeout = Duration::from_millis(300);
    });
    let (mut peer, _) = silent.accept().await.unwrap();
    // Three times as long as a peer that does not answer would be kept.
    timeout(PATIENCE, answer_pings(&mut peer, 48)).await.unwrap();
    assert!(timeout(Duration::ZERO, silent.accept()).await.is_err(), "the stream was opened again");
    worker.shutdown().drain();
    drop((peer, silent));
    worker.ended().await.unwrap();
}

/// Says what stock gRPC servers say to those who ping more often than they allow.
async fn demand_calm(peer: &mut TcpStream) {
    const GOAWAY: u8 = 7;
    const ENHANCE_YOUR_CALM: u8 = 0xb;
    let head = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0];
    let body = [0, 0, 0, 0, 0, 0, 0, ENHANCE_YOUR_CALM];
    peer.write_all(&[&head[..], &body].concat()).await.expect("the worker is there");
}

#[tokio::test]
async fn a_server_that_wants_fewer_pings_gets_fewer() {
    let strict = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let worker = embedded(&strict.local_addr().unwrap().to_string(), |config| {
        config.keepalive_interval = Duration::from_millis(20);
        config.keepalive_timeout = Duration::from_millis(2000);
    });
    for interval in [20, 40, 80] {
        let (mut peer, _) = timeout(PATIENCE, strict.accept()).await.unwrap().unwrap();
        let since = Instant::now();
        timeout(PATIENCE, answer_pings(&mut peer, 4)).await.unwrap();
        assert!(
            since.elapsed() >= Duration::from_millis(interval * 7 / 2),
            "{interval}: {:?}",
            since.elapsed()
        );
        demand_calm(&mut peer).await;
    }
    worker.shutdown().drain();
    drop(strict);
    worker.ended().await.unwrap();
}

#[tokio::test]
async fn a_service_that_is_gone_for_a_while_is_waited_for_and_not_for_ever() {
    let scheduler = FakeScheduler::start().await;
    let gone = Status::unimplemented("no such service");
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("RECONNECT_MAX_DELAY", "0.05").start();
    let mut stream = scheduler.accept().await;
    refusing(&scheduler, 4, &gone);
    stream.fail(Status::unavailable("restarting")).await;
    let mut stream = scheduler.accept().await;
    refusing(&scheduler, 5, &gone);
    stream.fail(Status::unavailable("restarting")).await;
    assert_eq!(worker.ended().await.code(), Some(3));
    assert!(worker.log().contains("does not speak this worker's protocol"), "{}", worker.log());
    nothing_comes_to(&scheduler).await;
}

#[tokio::test]
async fn streams_that_end_in_peace_at_once_are_failures_too() {
    let scheduler = FakeScheduler::start().await;
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler).set("MAX_RECONNECT_ATTEMPTS", "3").start();
    for _ in 0..3 {
        scheduler.accept().await.end_ok();
    }
    assert_eq!(worker.ended().await.code(), Some(4));
    nothing_comes_to(&scheduler).await;
}

#[tokio::test]
async fn a_leader_that_has_died_is_not_dialled_for_ever() {
    let (follower, mut leader) = (FakeScheduler::start().await, FakeScheduler::start().await);
    follower.refuse_next(not_leader(&leader));
    let _worker = WorkerSettings::new(CONFORMANCE, &follower).start();
    leader.accept().await.next_registration().await;
    leader.stop().await;
    follower.accept().await.next_registration().await;
}

#[tokio::test]
async fn an_attempt_that_was_refused_is_logged_with_the_code() {
    let scheduler = FakeScheduler::start().await;
    scheduler.refuse_next(Status::unauthenticated("expired"));
    let worker = WorkerSettings::new(CONFORMANCE, &scheduler).start();
    scheduler.accept().await.next_registration().await;
    worker.says("Unauthenticated: expired").await;
    let failed = &lines(&worker, "not connected")[0];
    assert_eq!(failed["error"], "Unauthenticated: expired", "{failed}");
}

/// The network swallows everything and tells neither side: only unanswered pings show it.
#[tokio::test]
async fn a_peer_that_is_gone_without_a_word_is_left() {
    let scheduler = FakeScheduler::start().await;
    let network = FaultProxy::start(scheduler.addr()).await;
    let worker = embedded(&network.addr().to_string(), |settings| {
        settings.keepalive_interval = Duration::from_millis(100);
        settings.keepalive_timeout = Duration::from_millis(100);
    });
    let mut lost = scheduler.accept().await;
    lost.next_registration().await;
    network.pause();
    let dialled_again = async {
        while network.accepted() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, dialled_again).await.expect("the worker leaves a network that is silent");
    network.resume();
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    stream.run("heard", "idle", Value::Null).await;
    assert_eq!(stream.next_result().await.run_id, "heard");
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_message_above_the_limit_costs_the_stream_and_no_result() {
    let (scheduler, worker, mut stream) = worker(&[("WORKER_MAX_MESSAGE_BYTES", "1")]).await;
    stream.run("at work", "sleep", json!({"ms": 300})).await;
    stream.run("finished", "echo", json!({"text": ""})).await;
    stream.next_result().await;
    stream.run("too large", "echo", json!({"text": "x".repeat(3 << 20)})).await;
    let mut stream = scheduler.accept().await;
    for run_id in ["finished", "at work"] {
        let result = stream.next_result().await;
        assert!(result.success && result.run_id == run_id, "{result:?}");
    }
    worker.says(r#""cause":"OutOfRange: "#).await;
}
