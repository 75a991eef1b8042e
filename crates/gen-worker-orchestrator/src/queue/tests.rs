//! What becomes of a run, event by event.

use super::*;
use crate::run::RetryPolicy;

const GRACE: Duration = Duration::from_secs(10);
const W1: Sender<'_> = Sender { session: 1, worker_id: "w" };
const W2: Sender<'_> = Sender { session: 2, worker_id: "w" };

fn at(seconds: u64) -> Now {
    use std::sync::LazyLock;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Now { at: *START + Duration::from_secs(seconds), unix_ms: seconds * 1000 }
}

fn request(function: &str) -> RunRequest {
    RunRequest {
        function: function.to_owned(),
        payload: Bytes::from_static(b"\x80"),
        timeout: None,
        tenant_id: Some("t".to_owned()),
        user_id: None,
        models: Vec::new(),
        retry: RetryPolicy::new(3),
    }
}

fn result(attempt: i64, error_type: &str) -> v1::TaskExecutionResult {
    v1::TaskExecutionResult {
        run_id: "r".to_owned(),
        success: error_type.is_empty(),
        output_payload: Bytes::from_static(b"\x81\xa1y\x02"),
        error_type: error_type.to_owned(),
        retryable: error_type == "retryable",
        attempt,
        ..Default::default()
    }
}

/// A queue in which the run `r` is with the first session.
fn running() -> Queue {
    let mut queue = Queue::new(10);
    queue.submit("r", request("f"), at(0)).unwrap();
    assert_eq!(queue.start("r", W1, at(0)).attempt, 1);
    queue
}

fn state(queue: &Queue) -> (RunState, i64) {
    let view = queue.view("r").unwrap();
    (view.state, view.attempt)
}

fn ready(queue: &Queue, now: Now) -> Vec<&str> {
    queue.ready(now.at).map(|run| run.run_id).collect()
}

fn event_types(queue: &Queue) -> Vec<String> {
    let batch = queue.log("r").unwrap().after(0);
    batch.events.into_iter().map(|event| event.event_type).collect()
}

#[test]
fn a_good_result_ends_the_run() {
    let mut queue = running();
    queue.settle(result(1, ""), W1, true, at(1));
    let view = queue.view("r").unwrap();
    assert_eq!(view.state, RunState::Succeeded);
    assert_eq!(view.output, Some(json!({"y": 2})));
    assert_eq!(view.finished_at_ms, Some(1000));
}

#[test]
fn one_id_is_one_request_for_ever() {
    let mut queue = running();
    assert_eq!(queue.submit("r", request("f"), at(1)), Ok(false));
    assert_eq!(queue.submit("r", request("g"), at(1)), Err(Refusal::Conflict));
    queue.settle(result(1, ""), W1, true, at(1));
    assert_eq!(queue.submit("r", request("f"), at(1)), Ok(false));
}

#[test]
fn a_retryable_failure_is_tried_again_later_until_attempts_run_out() {
    let mut queue = running();
    queue.settle(result(1, "retryable"), W1, false, at(1));
    assert_eq!(state(&queue), (RunState::Queued, 2));
    assert!(ready(&queue, at(1)).is_empty());
    assert_eq!(queue.next_change(GRACE, at(1).at), Some(at(1).at + Duration::from_millis(500)));
    for attempt in 2..=3 {
        let later = at(attempt as u64 * 100);
        assert_eq!(ready(&queue, later), ["r"]);
        queue.start("r", W1, later);
        queue.settle(result(attempt, "retryable"), W1, false, later);
    }
    assert_eq!(state(&queue), (RunState::Failed, 3));
    assert_eq!(
        event_types(&queue),
        ["queued", "started", "attempt_failed", "started", "attempt_failed", "started"]
    );
}

#[test]
fn a_refusal_is_no_failure() {
    let mut queue = running();
    for attempt in 1..=5 {
        queue.settle(result(attempt, "retryable"), W1, true, at(attempt as u64));
        queue.start("r", W1, at(attempt as u64 + 1));
    }
    let accepted = v1::RunAccepted { run_id: "r".to_owned(), attempt: 6 };
    queue.accept(&accepted, W1);
    queue.settle(result(6, "validation"), W1, true, at(9));
    assert_eq!(state(&queue), (RunState::Failed, 6));
}

#[test]
fn a_stale_attempt_changes_nothing() {
    let mut queue = running();
    queue.settle(result(1, "retryable"), W1, false, at(1));
    queue.settle(result(1, ""), W1, false, at(1));
    assert_eq!(state(&queue), (RunState::Queued, 2));
    queue.start("r", W1, at(9));
    queue.settle(result(1, ""), W1, false, at(9));
    assert_eq!(state(&queue), (RunState::Running, 2));
}

#[test]
fn a_lost_worker_has_a_while_to_come_back() {
    let mut queue = running();
    queue.lose(1, at(5).at);
    queue.expire(GRACE, at(14));
    assert_eq!(state(&queue), (RunState::Running, 1));
    queue.expire(GRACE, at(15));
    assert_eq!(state(&queue), (RunState::Queued, 2));
}

#[test]
fn a_worker_that_comes_back_keeps_its_runs() {
    let mut queue = running();
    queue.lose(1, at(5).at);
    let active = |attempt| v1::ActiveRun { run_id: "r".to_owned(), attempt };
    assert!(!queue.adopt(&active(2), W2));
    assert!(queue.adopt(&active(1), W2));
    queue.expire(GRACE, at(99));
    assert_eq!(state(&queue), (RunState::Running, 1));
    assert_eq!(queue.load(2).get("f"), Some(&1));
    queue.settle(result(1, ""), W2, true, at(99));
    assert_eq!(state(&queue), (RunState::Succeeded, 1));
}

#[test]
fn an_unfenced_result_counts_from_the_worker_that_has_the_run() {
    let mut queue = running();
    let other = Sender { session: 3, worker_id: "other" };
    queue.settle(result(0, ""), other, false, at(1));
    assert_eq!(state(&queue), (RunState::Running, 1));
    queue.settle(result(0, ""), W2, false, at(1));
    assert_eq!(state(&queue), (RunState::Succeeded, 1));
}

#[test]
fn a_canceled_run_is_not_tried_again() {
    let mut queue = running();
    let told = Canceled::Running { session: 1, attempt: 1 };
    assert_eq!(queue.cancel("r", at(1)), Some(told));
    queue.settle(result(1, "retryable"), W1, false, at(2));
    assert_eq!(state(&queue), (RunState::Canceled, 1));
    assert_eq!(queue.cancel("r", at(3)), Some(Canceled::Ended));
    assert_eq!(queue.cancel("x", at(3)), None);
}

#[test]
fn a_waiting_run_is_canceled_at_once() {
    let mut queue = Queue::new(10);
    queue.submit("r", request("f"), at(0)).unwrap();
    assert_eq!(queue.cancel("r", at(1)), Some(Canceled::Waiting));
    assert_eq!(state(&queue).0, RunState::Canceled);
    assert!(ready(&queue, at(2)).is_empty());
}

#[test]
fn only_so_many_ended_runs_are_remembered() {
    let mut queue = Queue::new(2);
    for name in ["a", "b", "c"] {
        queue.submit(name, request("f"), at(0)).unwrap();
        queue.cancel(name, at(0));
    }
    assert!(queue.view("a").is_none());
    assert_eq!(queue.list().len(), 2);
    assert_eq!((queue.tokens.len(), queue.open_bytes), (2, 0));
}

#[test]
fn a_file_token_is_good_a_while_longer_than_the_run() {
    let mut queue = running();
    let token = queue.runs["r"].file_token.clone();
    queue.settle(result(1, ""), W1, true, at(1));
    let scope = queue.file_scope(&token, at(100).at).unwrap();
    assert_eq!((scope.run_id.as_str(), scope.tenant_id.as_deref()), ("r", Some("t")));
    assert_eq!(queue.file_scope(&token, at(400).at), None);
    assert_eq!(queue.file_scope("x", at(0).at), None);
}

#[test]
fn a_run_speaks_through_the_worker_that_has_it() {
    let mut queue = running();
    let event = v1::WorkerEvent {
        run_id: "r".to_owned(),
        event_type: "job.log".to_owned(),
        payload_json: Bytes::from_static(b"{}"),
    };
    queue.event(event.clone(), W2);
    assert_eq!(event_types(&queue), ["queued", "started"]);
    queue.event(event.clone(), W1);
    queue.settle(result(1, ""), W1, true, at(1));
    queue.event(event, W1);
    assert_eq!(event_types(&queue), ["queued", "started", "job.log"]);
}
