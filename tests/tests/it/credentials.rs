//! Which token a worker dials with, and what becomes of it when the token's time is over.

use std::{
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeHub, FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::json;

use super::{CONFORMANCE, worker};

/// The key pairs that the credential's own tests sign with.
#[path = "../../../crates/gen-worker-auth/src/fixture.rs"]
#[expect(dead_code, reason = "its parts for tests of single claims are not needed here")]
mod fixture;

use fixture::{ONE, OTHER, key_set};

/// Where the keys of the scheduler are published.
async fn publisher() -> FakeHub {
    let publisher = FakeHub::start().await;
    publisher.put_json("/keys", &key_set([&*ONE]));
    publisher
}

fn keys(publisher: &FakeHub) -> String {
    format!("{}/keys", publisher.url())
}

/// A token that is believed, and expires so many seconds from now.
fn token(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    ONE.token(&json!({"sub": "worker", "exp": now as i64 + seconds}))
}

/// A worker whose token is the file's, which holds this one and is checked; it logs everything.
fn worker_with_file(scheduler: &FakeScheduler, publisher: &FakeHub, token: &str) -> (WorkerProcess, PathBuf) {
    let settings = WorkerSettings::new(CONFORMANCE, scheduler)
        .set("WORKER_JWT_FILE", "token")
        .set("SCHEDULER_JWKS_URL", keys(publisher))
        .set("RUST_LOG", "trace");
    let path = settings.directory().join("token");
    fs::write(&path, token).expect("it can be written");
    (settings.start(), path)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Runs `echo` and returns its result; results of earlier streams may come again before it.
async fn echo(stream: &mut WorkerStream, run_id: &str) -> v1::TaskExecutionResult {
    stream.run(run_id, "echo", json!({"text": ""})).await;
    let own = |message: Msg| match message {
        Msg::RunResult(result) if result.run_id == run_id => Some(result),
        _ => None,
    };
    stream.wait_for("its result", own).await
}

/// Sends a token, and waits until a run that was sent after it has ended: commands are taken in order.
async fn refresh(stream: &mut WorkerStream, run_id: &str, token: &str) {
    let refresh = v1::TokenRefresh { token: token.into(), expires_at_unix_ms: 0 };
    stream.send(Msg::TokenRefresh(refresh)).await;
    assert!(echo(stream, run_id).await.success);
}

/// Asserts that neither the claims nor the signature of these tokens stand in the log.
fn assert_untold(worker: &WorkerProcess, tokens: &[&str]) {
    let log = worker.log();
    assert!(log.contains(r#""level":"TRACE""#), "the log is complete");
    for part in tokens.iter().flat_map(|token| token.split('.').skip(1)) {
        assert!(!log.contains(part), "{part} stands in\n{log}");
    }
}

#[tokio::test]
async fn the_token_of_a_file_is_read_again_when_it_has_changed() {
    let scheduler = FakeScheduler::start().await;
    let settings = WorkerSettings::new(CONFORMANCE, &scheduler).set("WORKER_JWT_FILE", "token");
    let path = settings.directory().join("token");
    fs::write(&path, "the-first\n").expect("it can be written");
    let _worker = settings.start();
    let stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some("Bearer the-first"));

    fs::write(path.with_extension("next"), "the-second\n").expect("it can be written");
    fs::rename(path.with_extension("next"), &path).expect("it can be put in place");
    stream.drop_connection();
    let stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some("Bearer the-second"));

    fs::remove_file(&path).expect("it can be removed");
    stream.drop_connection();
    assert_eq!(scheduler.accept().await.authorization(), Some("Bearer the-second"));
}

#[tokio::test]
async fn a_token_from_the_scheduler_is_used_for_the_next_dial() {
    let (scheduler, _worker, mut stream) = worker(&[("WORKER_JWT", "the-first")]).await;
    refresh(&mut stream, "probe", "the-second").await;
    // No header could carry it, and no dial would be made any more.
    refresh(&mut stream, "another probe", "two\nlines").await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some("Bearer the-second"));
    let resources = stream.next_registration().await.resources.expect("it says what it has");
    assert!(resources.features.contains(&"token-refresh".to_owned()));
}

#[tokio::test]
async fn every_token_passes_the_same_check_as_the_first() {
    let publisher = publisher().await;
    let (first, forged, second) = (token(600), OTHER.token(&json!({"sub": "forger"})), token(700));
    let (scheduler, worker, mut stream) = worker(&[
        ("AUTH_TOKEN", &first),
        ("SCHEDULER_JWKS_URL", &keys(&publisher)),
        // Each check fetches the keys, the later ones while the stream is open.
        ("SCHEDULER_JWKS_TTL_SECONDS", "0.000001"),
        ("RUST_LOG", "trace"),
    ])
    .await;
    assert_eq!(stream.authorization(), Some(bearer(&first).as_str()));

    refresh(&mut stream, "one", &forged).await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some(bearer(&first).as_str()));

    refresh(&mut stream, "two", &second).await;
    stream.drop_connection();
    let stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some(bearer(&second).as_str()));
    worker.says("the scheduler sent a token that is refused").await;
    assert_untold(&worker, &[&first, &forged, &second]);
}

#[tokio::test]
async fn an_expired_token_closes_the_worker_until_there_is_another() {
    let (scheduler, publisher) = (FakeScheduler::start().await, publisher().await);
    // The leeway of 30 seconds is over in five.
    let (short, long) = (token(-25), token(600));
    let (worker, path) = worker_with_file(&scheduler, &publisher, &short);
    let mut stream = scheduler.accept().await;
    assert!(!functions(&mut stream).await.is_empty());

    let refused = loop {
        let result = echo(&mut stream, "probe").await;
        if !result.success {
            break result;
        }
    };
    assert_eq!((refused.error_type.as_str(), refused.retryable), ("retryable", true));
    assert_eq!(refused.safe_message, "worker busy");
    assert_eq!(refused.error_message, "The worker's credential has expired.");
    worker.says("the worker's token has expired: no runs are taken").await;
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    assert!(functions(&mut stream).await.is_empty());

    fs::write(&path, &long).expect("it can be written");
    stream.drop_connection();
    let mut stream = scheduler.accept().await;
    assert_eq!(stream.authorization(), Some(bearer(&long).as_str()));
    assert!(!functions(&mut stream).await.is_empty());
    assert!(echo(&mut stream, "after").await.success);
    assert_untold(&worker, &[&short, &long]);
}

async fn functions(stream: &mut WorkerStream) -> Vec<String> {
    stream.next_registration().await.resources.expect("it says what it has").available_functions
}

#[tokio::test]
async fn no_dial_is_made_with_a_token_of_a_file_that_is_refused() {
    let (scheduler, publisher) = (FakeScheduler::start().await, publisher().await);
    let (expired, good) = (token(-60), token(600));
    let (worker, path) = worker_with_file(&scheduler, &publisher, &expired);
    worker.says("no token to dial with: the token has expired").await;
    fs::write(&path, &good).expect("it can be written");
    // The first stream of all comes with the good token.
    assert_eq!(scheduler.accept().await.authorization(), Some(bearer(&good).as_str()));
    assert_untold(&worker, &[&expired, &good]);
}

#[tokio::test]
async fn a_file_without_a_token_ends_the_start() {
    for content in [None, Some(""), Some(" \n")] {
        let settings = WorkerSettings::anywhere(CONFORMANCE).set("WORKER_JWT_FILE", "token");
        if let Some(content) = content {
            fs::write(settings.directory().join("token"), content).expect("it can be written");
        }
        let mut worker = settings.start();
        assert_eq!(worker.ended().await.code(), Some(5));
        assert!(worker.log().contains("WORKER_JWT_FILE"), "{}", worker.log());
    }
}

#[tokio::test]
async fn a_refused_token_of_a_variable_ends_the_start_and_is_not_shown() {
    let publisher = publisher().await;
    for refused in [token(-60), OTHER.token(&json!({"sub": "forger"}))] {
        let mut worker = WorkerSettings::anywhere(CONFORMANCE)
            .set("AUTH_TOKEN", &refused)
            .set("SCHEDULER_JWKS_URL", keys(&publisher))
            .set("RUST_LOG", "trace")
            .start();
        assert_eq!(worker.ended().await.code(), Some(5), "{}", worker.log());
        assert_untold(&worker, &[&refused]);
    }
}

#[tokio::test]
async fn a_variable_without_a_usable_token_ends_the_start() {
    let mut worker = WorkerSettings::anywhere(CONFORMANCE).set("AUTH_TOKEN", "two words").start();
    assert_eq!(worker.ended().await.code(), Some(5), "{}", worker.log());
    assert!(worker.log().contains("one word of plain ASCII") && !worker.log().contains("two words"));
}
