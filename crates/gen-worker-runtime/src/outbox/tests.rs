//! The outbox without a stream.

use std::num::NonZeroU32;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use gen_worker_core::{ByteLimit, Call, CancelReason, Download, DownloadState, Frame, Function, WorkerError};

use super::*;
use crate::{
    admission::{self, Applicant, Stop},
    ports::Ports,
    shutdown::Shutdown,
    snapshot::Doing,
    wire::v1::worker_scheduler_message::Msg,
};

const PLENTY: usize = 1 << 20;

const LATE: Duration = Duration::from_secs(1);

fn key(run: &str) -> Key {
    (RunId::parse(run).unwrap(), 0)
}

fn result(run: &str) -> Message {
    outbound::result(&key(run).0, 0, &Ok(Bytes::new()))
}

fn large_result(run: &str) -> Message {
    outbound::result(&key(run).0, 0, &Ok(vec![0; PLENTY].into()))
}

fn delta(run: &str, n: usize) -> Event {
    Event::delta(n.to_string().into()).about(&key(run).0)
}

fn progress(run: &str) -> Event {
    Event::progress(0.5, None).about(&key(run).0)
}

fn registration() -> Message {
    outbound::registration(Default::default(), Vec::new(), false)
}

fn outbox(events: usize) -> Arc<Outbox> {
    Arc::new(Outbox::new(&Limits { events, result_bytes: PLENTY, message_bytes: PLENTY, late: LATE }))
}

/// A queue with a stream that has registered, by its number.
fn queue(event_capacity: usize) -> (Queue, u64) {
    let mut queue = Queue::new(event_capacity, PLENTY);
    let stream = restart(&mut queue);
    (queue, stream)
}

fn restart(queue: &mut Queue) -> u64 {
    let stream = queue.start_stream(registration());
    let first = next(queue, stream).map(|message| message.map(|message| message.decoded()));
    assert!(matches!(first, Poll::Ready(Some(Msg::WorkerRegistration(_)))));
    stream
}

fn next(queue: &mut Queue, stream: u64) -> Poll<Option<Message>> {
    queue.next_of(stream, Instant::now())
}

/// `=r` for the result of `r`, `+r` for an event of it, `~` for a frame.
fn name(message: Message) -> String {
    match message.decoded() {
        Msg::RunResult(result) => format!("={}", result.run_id),
        Msg::WorkerEvent(event) => format!("+{}", event.run_id),
        Msg::RealtimeFrame(_) => "~".to_owned(),
        Msg::WorkerRegistration(registration) if registration.is_heartbeat => "heartbeat".to_owned(),
        other => panic!("{other:?}"),
    }
}

fn drain(queue: &mut Queue, stream: u64) -> Vec<String> {
    let mut said = Vec::new();
    while let Poll::Ready(Some(message)) = next(queue, stream) {
        said.push(name(message));
    }
    said
}

#[test]
fn a_result_follows_its_own_events_and_overtakes_those_of_others() {
    let (mut queue, stream) = queue(10);
    for event in [progress("loud"), delta("a", 1), progress("loud"), delta("a", 2)] {
        queue.events.push(event).unwrap();
    }
    queue.results.push(key("a"), result("a"), Instant::now());
    assert_eq!(drain(&mut queue, stream), ["+a", "+a", "=a", "+loud", "+loud"]);
}

/// A result with a line that is taken now.
fn lined(queue: &mut Queue, run: &str, now: Instant) {
    let number = queue.results.hold_back(key(run), result(run), now);
    queue.results.tell_of(number, Line::blank(), now);
    queue.results.release(number);
}

/// When the results were delivered whose lines are due.
fn told(queue: &mut Queue) -> Vec<Option<Instant>> {
    queue.results.told.drain(..).map(|(_, delivered)| delivered).collect()
}

#[test]
fn a_run_has_its_line_once_its_result_is_delivered() {
    let (mut queue, stream) = queue(10);
    let (now, later) = (Instant::now(), Instant::now() + Duration::from_millis(9));
    lined(&mut queue, "a", now);
    assert!(told(&mut queue).is_empty(), "the stream has not read it");
    assert!(matches!(queue.next_of(stream, later), Poll::Ready(Some(_))));
    assert_eq!(told(&mut queue), [Some(later)]);

    queue.results.await_acknowledgements();
    lined(&mut queue, "b", now);
    drain(&mut queue, stream);
    assert!(told(&mut queue).is_empty(), "nobody has acknowledged it");
    assert!(queue.results.acknowledge(&key("b"), later));
    assert_eq!(told(&mut queue), [Some(later)]);
    let delivery = queue.results.delivery.read();
    assert_eq!((delivery.count(), delivery.sum >= Duration::from_millis(18)), (2, true));

    // It goes out behind the registration, before the next scheduler says that it acknowledges.
    lined(&mut queue, "c", now);
    let stream = queue.start_stream(registration());
    for said in ["the registration", "`a` once more", "`c`"] {
        assert!(queue.next_of(stream, later).is_ready(), "{said}");
    }
    queue.results.await_acknowledgements();
    assert_eq!(told(&mut queue).len(), 1);
    assert!(queue.results.acknowledge(&key("c"), later));
    assert_eq!(
        (told(&mut queue).len(), queue.results.delivery.read().count()),
        (0, 3),
        "it is measured once"
    );
}

#[test]
fn a_line_never_waits_for_long_nor_is_lost() {
    let (mut queue, stream) = queue(10);
    queue.results.await_acknowledgements();
    let now = Instant::now();
    for run in ["a", "b", "c"] {
        lined(&mut queue, run, now);
    }
    drain(&mut queue, stream);
    assert!(queue.results.forget(&key("b")), "it is begun again");
    assert_eq!(told(&mut queue), [None]);
    queue.results.tell_late(now + LATE / 2, LATE);
    assert!(told(&mut queue).is_empty());
    queue.results.tell_late(now + LATE, LATE);
    assert_eq!(told(&mut queue), [None, None]);
    assert!(queue.results.acknowledge(&key("a"), now + LATE));
    assert!(told(&mut queue).is_empty(), "a run has one line");
}

#[test]
fn frames_and_events_take_turns() {
    let (mut queue, stream) = queue(10);
    for _ in 0..3 {
        queue.push_frame(outbound::realtime_frame(&key("s").0, Frame::Text(String::new())), None);
    }
    queue.events.push(progress("a")).unwrap();
    queue.events.push(progress("a")).unwrap();
    assert_eq!(drain(&mut queue, stream), ["~", "+a", "~", "+a", "~"]);
    assert!(queue.events.has_room(), "frames take no places of events");
}

#[test]
fn every_buffer_is_bounded() {
    let (mut queue, stream) = queue(10);
    let per_result = 700;
    for run in 0..PLENTY / per_result * 2 {
        queue.results.push(key(&run.to_string()), result(&run.to_string()), Instant::now());
        drain(&mut queue, stream);
        queue.shed();
    }
    assert!(!queue.is_full() && queue.results.all().count < PLENTY / 512);
    assert!(queue.take_losses().results > 0, "what was written first went first, and was counted");
    let held = queue.results.all().count;
    restart(&mut queue);
    assert!(queue.shed().is_empty() && queue.results.unwritten().count == held, "what waits is never shed");
}

#[test]
fn a_download_has_its_end_whatever_else_is_said() {
    let outbox = outbox(3);
    let end = |run| {
        let event = Event::model_download("m", DownloadState::Completed, Download::default());
        outbox.emit(event.about(&key(run).0));
        for _ in 0..100 {
            outbox.emit(progress("loud"));
        }
    };
    ["a", "b"].into_iter().for_each(end);
    let mut queue = outbox.queue();
    let stream = restart(&mut queue);
    assert_eq!(drain(&mut queue, stream), ["+a", "+b", "+loud"]);
    assert_eq!(queue.take_losses().events, 199);
}

#[test]
fn a_scheduler_that_acknowledges_loses_nothing_and_is_given_no_more() {
    let (mut queue, stream) = queue(10);
    queue.results.await_acknowledgements();
    for run in ["a", "b"] {
        queue.results.push(key(run), large_result(run), Instant::now());
    }
    assert_eq!(drain(&mut queue, stream), ["=a", "=b"]);
    assert!(queue.shed().is_empty());
    assert!(queue.is_full() && !queue.is_congested());
    queue.results.expire(Instant::now() + Duration::from_secs(600), Duration::ZERO);
    assert_eq!(queue.results.all().count, 2, "only an acknowledgement ends the wait for it");
    queue.results.forget(&key("a"));
    queue.results.forget(&key("b"));
    assert!(!queue.is_full());
}

#[test]
fn nothing_more_is_read_from_a_scheduler_that_reads_no_more() {
    let outbox = outbox(10);
    let (mut speech, _said) = outbox.start_stream(registration());
    outbox.result(key("a"), large_result("a"), None);
    outbox.result(key("b"), large_result("b"), None);
    assert!(outbox.is_congested());
    for _ in 0..3 {
        speech.next().now_or_never().flatten().expect("a registration and two results");
    }
    assert!(!outbox.is_congested());
    assert!(outbox.relieved().now_or_never().is_some(), "the session is told");
}

#[test]
fn ends_of_sessions_that_nobody_reads_are_congestion() {
    let (mut queue, stream) = queue(10);
    let end = || outbound::realtime_closed("s".repeat(1 << 10), "worker busy");
    while !queue.is_congested() {
        queue.push_frame(end(), None);
    }
    while next(&mut queue, stream).is_ready() {}
    (0..PLENTY / end().len()).for_each(|_| queue.push_frame(end(), None));
    assert!(!queue.is_congested(), "what was said counts no more");
}

#[test]
fn congestion_may_come_and_go_between_two_looks() {
    let outbox = outbox(10);
    let (mut speech, _said) = outbox.start_stream(registration());
    speech.next().now_or_never().flatten().expect("a registration");
    let congest = || ["a", "b"].map(|run| outbox.result(key(run), large_result(run), None));
    let mut relieve = || [(); 2].map(|()| speech.next().now_or_never().flatten().expect("a result"));
    congest();
    relieve();
    assert!(outbox.relieved().now_or_never().is_some(), "it is over");
    congest();
    relieve();
    congest();
    assert!(outbox.relieved().now_or_never().is_none(), "what is over says nothing of what has come since");
    let mut waiting = Box::pin(outbox.relieved());
    assert!(waiting.as_mut().now_or_never().is_none());
    relieve();
    congest();
    assert!(waiting.as_mut().now_or_never().is_none());
    relieve();
    assert!(waiting.now_or_never().is_some());
}

#[test]
fn results_are_delivered_once_or_fenced() {
    let (mut queue, stream) = queue(1);
    queue.results.push(key("a"), result("a"), Instant::now());
    queue.results.push(key("b"), result("b"), Instant::now());
    assert_eq!(drain(&mut queue, stream), ["=a", "=b"]);
    let stream = restart(&mut queue);
    assert_eq!(
        drain(&mut queue, stream),
        ["=a", "=b"],
        "unacknowledged results are sent again on a new stream"
    );
    queue.results.forget(&key("a"));
    let stream = restart(&mut queue);
    assert_eq!(drain(&mut queue, stream), ["=b"]);
}

#[test]
fn a_registration_that_nobody_heard_is_missed_by_nobody() {
    let mut queue = Queue::new(1, PLENTY);
    queue.start_stream(registration());
    queue.heartbeat = Some(registration());
    assert!(queue.is_worth_waking_for() && queue.is_delivered());
}

#[test]
fn a_stream_that_is_over_is_told_nothing() {
    let (mut queue, old) = queue(1);
    let new = restart(&mut queue);
    queue.results.push(key("a"), result("a"), Instant::now());
    assert!(matches!(next(&mut queue, old), Poll::Ready(None)));
    assert_eq!(drain(&mut queue, new), ["=a"]);
}

#[test]
fn a_stream_begins_with_its_registration_and_keeps_one_heartbeat() {
    let mut queue = Queue::new(1, PLENTY);
    let heartbeat = || Some(outbound::registration(Default::default(), Vec::new(), true));
    queue.results.push(key("a"), result("a"), Instant::now());
    let stream = queue.start_stream(registration());
    queue.heartbeat = heartbeat();
    queue.heartbeat = heartbeat();
    let Poll::Ready(Some(first)) = next(&mut queue, stream) else { panic!("it has much to say") };
    assert!(matches!(first.decoded(), Msg::WorkerRegistration(registration) if !registration.is_heartbeat));
    assert_eq!(drain(&mut queue, stream), ["heartbeat", "=a"]);
}

#[test]
fn without_acknowledgement_a_result_is_kept_for_a_while_of_health() {
    let ((mut queue, stream), retention) = (queue(1), Duration::from_secs(60));
    let much_later = || Instant::now() + retention * 2;
    queue.results.push(key("a"), result("a"), Instant::now());
    queue.results.expire(much_later(), retention);
    assert_eq!(queue.results.unwritten().count, 1, "what was never written is never forgotten");
    drain(&mut queue, stream);
    let stream = restart(&mut queue);
    queue.results.expire(much_later(), retention);
    assert_eq!(drain(&mut queue, stream), ["=a"], "a new stream starts the time again");
    assert_eq!(queue.results.expire(much_later(), retention), [key("a")]);
    assert!(queue.is_delivered());
}

#[test]
fn a_result_is_resent_on_demand_and_once() {
    let (mut queue, stream) = queue(1);
    queue.results.push(key("a"), result("a"), Instant::now());
    queue.results.resend(&key("a"));
    queue.results.resend(&key("b"));
    assert_eq!(drain(&mut queue, stream), ["=a"]);
    queue.results.resend(&key("a"));
    assert!(queue.results.expire(Instant::now(), Duration::ZERO).is_empty(), "it is to be written again");
    assert_eq!(drain(&mut queue, stream), ["=a"]);
}

#[test]
fn a_refusal_is_delivered_and_answers_no_second_try() {
    let (mut queue, stream) = queue(1);
    queue.results.push(key("a"), result("a"), Instant::now());
    queue.results.mark_refusal(&key("a"));
    assert!(!queue.results.has_outcome(&key("a")));
    drain(&mut queue, stream);
    let stream = restart(&mut queue);
    assert_eq!(drain(&mut queue, stream), ["=a"]);
}

#[test]
fn an_acknowledgement_of_a_refusal_costs_no_result() {
    let (mut queue, stream) = queue(1);
    let fenced = (key("a").0, 1);
    queue.results.push(fenced.clone(), result("a"), Instant::now());
    drain(&mut queue, stream);
    queue.results.push(fenced.clone(), result("a"), Instant::now());
    assert!(!queue.can_be_acknowledged(&fenced), "the second was told to nobody");
    drain(&mut queue, stream);
    restart(&mut queue);
    assert!(queue.can_be_acknowledged(&fenced));
    assert!(!queue.can_be_acknowledged(&key("b")));
}

#[test]
fn a_result_is_held_back_until_the_journal_has_it() {
    let (mut queue, stream) = queue(1);
    let first = queue.results.hold_back(key("a"), result("a"), Instant::now());
    queue.events.push(progress("loud")).unwrap();
    assert_eq!(drain(&mut queue, stream), ["+loud"], "and nothing else waits for it");
    let stream = restart(&mut queue);
    queue.results.resend(&key("a"));
    assert!(drain(&mut queue, stream).is_empty() && !queue.is_said());
    let second = queue.results.hold_back(key("a"), result("a"), Instant::now());
    queue.results.release(first);
    assert!(drain(&mut queue, stream).is_empty(), "the first was replaced");
    queue.results.release(second);
    assert_eq!(drain(&mut queue, stream), ["=a"]);
    assert!(queue.is_said());
}

struct Unstoppable;

impl Stop for Unstoppable {
    fn doing(&self) -> Doing {
        Doing { age: Duration::ZERO, stage: None }
    }

    fn stop(self: Arc<Self>, _permit: PermitId, _reason: CancelReason) {}
}

/// A worker of one place, and what the only function takes it with.
fn admission() -> (Admission, Function) {
    let limits = admission::Limits { max_input: ByteLimit::Unlimited, max_concurrency: NonZeroU32::new(1) };
    let function = Function::builder::<serde_json::Value>("f", "tests")
        .asynchronous(|_: Call<serde_json::Value>| async { Ok::<_, WorkerError>(()) })
        .unwrap();
    (Admission::new(limits, Ports::default().credential, Shutdown::new(Duration::ZERO)), function)
}

fn applicant<'a>((run_id, attempt): &'a Key, function: &'a Function) -> Applicant<'a> {
    Applicant {
        run_id,
        attempt: *attempt,
        spec: function.spec(),
        payload_bytes: 0,
        deadline: None,
        is_room: true,
    }
}

#[test]
fn a_run_that_ends_at_the_edge_of_its_grace_has_ended() {
    let (admission, function) = admission();
    let admit = |key| admission.admit(&applicant(&key, &function), Arc::new(Unstoppable)).unwrap();
    let outbox = outbox(1);
    let permit = admit(key("a"));
    let id = permit.id();
    outbox.conclude(key("a"), result("a"), Arc::new(permit), None);
    assert_eq!(admission.held().permits, 1, "nobody has looked");
    assert_eq!(outbox.abandon(&admission, id), None);
    let permit = admit(key("b"));
    assert_eq!(outbox.abandon(&admission, permit.id()), Some(1), "this one goes on");
}

#[test]
fn whoever_hears_of_a_result_finds_the_place_free() {
    let (admission, function) = admission();
    let run = key("a");
    let applicant = applicant(&run, &function);
    let permit = admission.admit(&applicant, Arc::new(Unstoppable)).unwrap();

    let outbox = outbox(1);
    let (mut speech, _said) = outbox.start_stream(registration());
    let mut next = || speech.next().now_or_never().flatten();
    assert!(next().is_some() && next().is_none());
    outbox.emit(progress("a"));
    outbox.conclude(key("a"), result("a"), Arc::new(permit), None);
    assert_eq!(admission.active(), [key("a")], "until somebody looks");
    assert_eq!(name(next().unwrap()), "+a");
    assert_eq!(name(next().unwrap()), "=a");
    assert!(admission.admit(&applicant, Arc::new(Unstoppable)).is_ok());
}

#[tokio::test]
async fn a_stream_ends_once_all_is_said() {
    let outbox = outbox(1);
    let (mut speech, said) = outbox.start_stream(registration());
    outbox.result(key("a"), result("a"), None);
    outbox.finish();
    assert_eq!(speech.by_ref().count().await, 2, "a registration and a result");
    said.await.unwrap_err();
}

#[test]
fn a_refusal_takes_no_place_of_a_result_that_nobody_heard() {
    let refused = |failure: WorkerError| outbound::result(&key("a").0, 0, &Err(failure.into()));
    for (failure, may_come_again) in
        [(WorkerError::retryable("worker busy"), true), (WorkerError::validation("no such function"), false)]
    {
        let outbox = outbox(1);
        let (mut speech, _said) = outbox.start_stream(registration());
        let mut next = || speech.next().now_or_never().flatten().map(|message| message.decoded());
        next();
        outbox.result(key("a"), result("a"), None);
        let refusal = refused(failure);
        outbox.refusal(key("a"), refusal.clone(), may_come_again);
        assert!(matches!(next(), Some(Msg::RunResult(told)) if told.success));
        outbox.refusal(key("a"), refusal, may_come_again);
        assert!(matches!(next(), Some(Msg::RunResult(told)) if !told.success), "it was sent again since");
    }
}

#[tokio::test]
async fn what_is_shed_for_a_refusal_is_in_the_journal_no_more() {
    let directory = tempfile::TempDir::new().unwrap();
    let limits = Limits { events: 1, result_bytes: PLENTY, message_bytes: PLENTY, late: LATE };
    let outbox = Outbox::journaled(&limits, directory.path()).unwrap();
    let (mut speech, _said) = outbox.start_stream(registration());
    outbox.result(key("a"), outbound::result(&key("a").0, 0, &Ok(vec![0; PLENTY - 1024].into())), None);
    assert_eq!(speech.by_ref().skip(1).next().await.map(name).unwrap(), "=a");
    let busy: Result<Bytes, _> = Err(WorkerError::retryable("worker busy").into());
    outbox.refusal(key("b"), outbound::result(&key("b").0, 0, &busy), true);
    outbox.refusal(key("c"), outbound::result(&key("c").0, 0, &busy), true);
    assert_eq!(outbox.take_losses().results, 1, "there was no room for all three");
    outbox.close();
    drop((speech, outbox));
    let next = Outbox::journaled(&limits, directory.path()).unwrap();
    assert!(next.is_delivered(), "the next process sends nothing that was given up");
}

#[tokio::test]
async fn what_an_earlier_run_said_is_history_when_it_begins_again() {
    let outbox = outbox(1);
    let (mut speech, _said) = outbox.start_stream(registration());
    outbox.emit_durable(delta("a", 1), || true).await;
    let superseded = std::cell::Cell::new(false);
    let waiting = outbox.emit_durable(delta("a", 2), || !superseded.get());
    tokio::pin!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none(), "there is no room");
    superseded.set(true);
    outbox.begin(&key("a"));
    assert!(speech.next().await.is_some(), "the registration");
    waiting.await;
    assert!(speech.next().now_or_never().is_none(), "and nothing else");
}

#[tokio::test]
async fn a_durable_event_waits_for_room() {
    let outbox = outbox(1);
    let (mut speech, _said) = outbox.start_stream(registration());
    outbox.emit_durable(delta("a", 1), || true).await;
    let second = outbox.emit_durable(delta("a", 2), || true);
    let take = async { [speech.next().await, speech.next().await].map(Option::unwrap) };
    let ((), [_, first]) = tokio::join!(second, take);
    assert_eq!(name(first), "+a");
    assert_eq!(name(speech.next().await.unwrap()), "+a");
}
