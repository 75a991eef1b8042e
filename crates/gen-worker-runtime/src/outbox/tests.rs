//! The outbox without a stream.

use bytes::Bytes;

use super::*;
use crate::wire::v1::worker_scheduler_message::Msg;

fn key(run: &str) -> Key {
    (RunId::parse(run).unwrap(), 0)
}

fn result(run: &str) -> Message {
    outbound::result(&key(run).0, 0, &Ok(Bytes::new()))
}

fn delta(run: &str, n: usize) -> Event {
    Event::delta(n.to_string().into()).about(&key(run).0)
}

fn progress(run: &str) -> Event {
    Event::progress(0.5, None).about(&key(run).0)
}

/// `=r` for the result of `r`, `+r` for an event of it.
fn drain(queue: &mut Queue) -> Vec<String> {
    let now = Instant::now();
    let name = |message: Message| match message.msg {
        Some(Msg::RunResult(result)) => format!("={}", result.run_id),
        Some(Msg::WorkerEvent(event)) => format!("+{}", event.run_id),
        other => panic!("{other:?}"),
    };
    std::iter::from_fn(|| queue.next(now)).map(name).collect()
}

#[test]
fn a_result_follows_its_own_events_and_overtakes_those_of_others() {
    let mut queue = Queue::new(10);
    queue.push_event(progress("loud")).unwrap();
    queue.push_event(delta("a", 1)).unwrap();
    queue.push_event(progress("loud")).unwrap();
    queue.push_event(delta("a", 2)).unwrap();
    queue.push_result(key("a"), result("a"));
    assert_eq!(drain(&mut queue), ["+a", "+a", "=a", "+loud", "+loud"]);
}

#[test]
fn every_buffer_is_bounded() {
    let mut queue = Queue::new(3);
    for _ in 0..100_000 {
        queue.push_event(progress("loud")).unwrap();
    }
    assert_eq!((queue.events.len(), queue.dropped), (3, 99_997));
    for n in 0..3 {
        queue.push_event(delta("a", n)).unwrap();
    }
    assert!(queue.push_event(delta("a", 4)).is_err(), "a delta is never dropped");
    queue.push_event(progress("loud")).unwrap();
    assert_eq!(drain(&mut queue), ["+a", "+a", "+a"]);
}

#[test]
fn results_are_delivered_once_or_fenced() {
    let mut queue = Queue::new(1);
    queue.push_result(key("a"), result("a"));
    queue.push_result(key("b"), result("b"));
    assert_eq!(drain(&mut queue), ["=a", "=b"]);
    queue.restart();
    assert_eq!(drain(&mut queue), ["=a", "=b"], "unacknowledged results are sent again on a new stream");
    queue.forget(&key("a"));
    queue.restart();
    assert_eq!(drain(&mut queue), ["=b"]);
}

#[test]
fn without_acknowledgement_a_result_is_kept_for_a_while_of_health() {
    let (mut queue, retention) = (Queue::new(1), Duration::from_secs(60));
    queue.push_result(key("a"), result("a"));
    queue.expire(Instant::now() + retention * 2, retention);
    assert!(queue.has_next(), "what was never written is never forgotten");
    drain(&mut queue);
    queue.restart();
    queue.expire(Instant::now() + retention * 2, retention);
    assert_eq!(drain(&mut queue), ["=a"], "a new stream starts the time again");
    queue.expire(Instant::now() + retention * 2, retention);
    queue.restart();
    assert!(!queue.has_next());
}

#[test]
fn a_result_is_resent_on_demand_and_once() {
    let mut queue = Queue::new(1);
    queue.push_result(key("a"), result("a"));
    assert!(queue.resend(&key("a")) && !queue.resend(&key("b")));
    assert_eq!(drain(&mut queue), ["=a"]);
    assert!(queue.resend(&key("a")));
    assert_eq!(drain(&mut queue), ["=a"]);
}

#[test]
fn a_result_is_held_back_until_the_journal_has_it() {
    let mut queue = Queue::new(1);
    let first = queue.hold_back(key("a"), result("a"));
    queue.push_event(progress("loud")).unwrap();
    assert_eq!(drain(&mut queue), ["+loud"], "and nothing else waits for it");
    queue.restart();
    assert!(queue.resend(&key("a")) && !queue.has_next() && !queue.is_said());
    let second = queue.hold_back(key("a"), result("a"));
    queue.release(first);
    assert!(!queue.has_next(), "the first was replaced");
    queue.release(second);
    assert_eq!(drain(&mut queue), ["=a"]);
    assert!(queue.is_said());
}

#[tokio::test]
async fn a_durable_event_waits_for_room() {
    let outbox = Outbox::new(1);
    outbox.emit_durable(delta("a", 1)).await;
    let second = outbox.emit_durable(delta("a", 2));
    let take = async { outbox.next().is_some() };
    let ((), taken) = tokio::join!(second, take);
    assert!(taken && outbox.has_next());
}
