//! What is done before the first run and after the last.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use gen_worker::{Call, Function, RuntimeConfig, SetUp, State, TearDown, Worker, WorkerBuilder, WorkerError};
use gen_worker_proto::scheduler::worker_scheduler_message::Msg;
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, WorkerSettings, unpack};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{TENANTS, run_with};

struct Number(u64);

/// Answers with the number that a set-up made.
fn number() -> Function {
    Function::builder::<Value>("number", "tests")
        .takes::<State<Number>>()
        .asynchronous(|call: Call<Value>| async move {
            let number: State<Number> = call.extract("number")?;
            Ok::<_, WorkerError>(number.0.0)
        })
        .unwrap()
}

/// What was done, in order.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<&'static str>>>);

impl Notes {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }

    fn all(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().clone()
    }

    /// A tear-down that takes nothing and notes that it was called.
    fn tear_down(&self, what: &'static str) -> TearDown {
        let notes = self.clone();
        TearDown::blocking(what, move |()| {
            notes.note(what);
            Ok::<_, WorkerError>(())
        })
    }
}

async fn started(
    settings: impl FnOnce(&mut RuntimeConfig),
    build: impl FnOnce(WorkerBuilder) -> WorkerBuilder,
) -> (FakeScheduler, Embedded, WorkerStream) {
    let scheduler = FakeScheduler::start().await;
    let mut config = Embedded::settings(&scheduler.addr().to_string());
    settings(&mut config);
    let worker = Embedded::start(build(Worker::builder(config).function(number())));
    let stream = scheduler.accept().await;
    (scheduler, worker, stream)
}

/// What is ready, and what is loading.
async fn functions(stream: &mut WorkerStream) -> (Vec<String>, Vec<String>) {
    let resources = stream.next_registration().await.resources.unwrap();
    (resources.available_functions, resources.loading_functions)
}

/// Whether a report said that the function is ready.
fn said_ready(stream: &WorkerStream) -> bool {
    let mut reports = stream.seen().iter().filter_map(|message| match &message.msg {
        Some(Msg::WorkerRegistration(report)) => report.resources.as_ref(),
        _ => None,
    });
    reports.any(|report| report.available_functions == ["number"] && report.loading_functions.is_empty())
}

#[tokio::test]
async fn functions_are_loading_until_the_worker_is_set_up_and_runs_wait() {
    let (let_go, held) = oneshot::channel();
    let slow = SetUp::asynchronous("slow", || async move { held.await.map(Number) });
    let (_scheduler, worker, mut stream) = started(|_| {}, |builder| builder.set_up(slow)).await;
    assert_eq!(functions(&mut stream).await, (vec![], vec!["number".to_owned()]));
    stream.hello(&["run-accepted"]).await;
    stream.run("early", "number", json!({})).await;
    stream.wait_for("the run to be accepted", |msg| matches!(msg, Msg::RunAccepted(_)).then_some(())).await;
    let_go.send(7).unwrap();
    let result = stream.next_result().await;
    assert!(result.success, "{result:?}");
    assert_eq!(unpack::<u64>(&result.output_payload), 7);
    // The report comes before the result or after it.
    while !said_ready(&stream) {
        stream.recv().await;
    }
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_run_that_waits_for_the_set_up_keeps_its_deadline() {
    let never = SetUp::asynchronous("never", || async { Ok::<Number, WorkerError>(pending().await) });
    let (_scheduler, worker, mut stream) = started(|_| {}, |builder| builder.set_up(never)).await;
    stream.next_registration().await;
    run_with(&mut stream, "r", "number", json!({}), |run| run.timeout_ms = 50).await;
    let result = stream.next_result().await;
    assert_eq!(result.error_type, "timeout", "{result:?}");
    worker.leave(stream).await;
}

/// A worker with this set-up leaves; the run that waits is handed back, and this is said.
async fn check_failure(set_up: SetUp, limit: Option<Duration>, said: &str) {
    let notes = Notes::default();
    let takes = TearDown::asynchronous("takes", |(_,): (State<Number>,)| async {
        unreachable!("nothing made it") as Result<(), WorkerError>
    });
    let (_scheduler, worker, mut stream) = started(
        |config| config.setup_timeout = limit,
        |builder| builder.set_up(set_up).tear_down(takes).tear_down(notes.tear_down("plain")),
    )
    .await;
    stream.ended().await.unwrap();
    stream.end_ok();
    let failure = worker.ended().await.unwrap_err().to_string();
    assert!(failure.contains(said), "{failure}");
    assert_eq!(notes.all(), ["plain"], "a tear-down whose state was not made is left out");
}

#[tokio::test]
async fn a_set_up_that_fails_panics_or_takes_too_long_ends_the_worker() {
    let failed = SetUp::blocking("labels", || std::fs::read("/no/such/file").map(|_| Number(1)));
    check_failure(failed, None, "the set-up `labels` failed: No such file").await;
    let panicked = SetUp::blocking("labels", || -> Result<Number, WorkerError> { panic!("a fault") });
    check_failure(panicked, None, "the set-up `labels` panicked").await;
    let panicked =
        SetUp::asynchronous("labels", || async { panic!("a fault") as Result<Number, WorkerError> });
    check_failure(panicked, None, "the set-up `labels` panicked").await;
    let hangs = SetUp::asynchronous("labels", || async { Ok::<Number, WorkerError>(pending().await) });
    let limit = Some(Duration::from_millis(20));
    check_failure(hangs, limit, "waiting for `labels`: WORKER_SETUP_TIMEOUT_SECONDS").await;
}

#[tokio::test]
async fn a_run_that_waits_is_handed_back_when_the_set_up_fails() {
    let (let_go, held) = oneshot::channel::<u64>();
    let fails = SetUp::asynchronous("fails", || async move { held.await.map(Number) });
    let drain = |config: &mut RuntimeConfig| config.drain_timeout = Duration::from_secs(3600);
    let (_scheduler, worker, mut stream) = started(drain, |builder| builder.set_up(fails)).await;
    stream.next_registration().await;
    stream.run("r", "number", json!({})).await;
    stream.run("probe", "none", json!({})).await;
    assert_eq!(stream.next_result().await.run_id, "probe", "the run before it was taken");
    drop(let_go);
    let result = stream.next_result().await;
    assert_eq!(
        (result.run_id.as_str(), result.error_type.as_str(), result.retryable),
        ("r", "retryable", true)
    );
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.is_err());
}

#[tokio::test]
async fn tear_downs_come_after_the_last_run_whatever_becomes_of_them() {
    let notes = Notes::default();
    let (begun, waits) = oneshot::channel();
    let begun = Mutex::new(Some(begun));
    let noted = notes.clone();
    let long = Function::builder::<Value>("long", "tests")
        .asynchronous(move |call: Call<Value>| {
            let (noted, begun) = (noted.clone(), begun.lock().unwrap().take());
            async move {
                begun.expect("it runs once").send(()).expect("the test waits");
                call.context.canceled().await;
                noted.note("run");
                Ok::<_, WorkerError>(())
            }
        })
        .unwrap();
    let made = SetUp::asynchronous("made", || async { Ok::<_, WorkerError>(Number(7)) });
    let taken = notes.clone();
    let takes = TearDown::asynchronous("takes", move |(number,): (State<Number>,)| async move {
        assert_eq!(number.0.0, 7);
        taken.note("tear-down");
        Err::<(), _>(WorkerError::internal("a disk is full"))
    });
    let hangs = TearDown::asynchronous("hangs", |()| pending::<Result<(), WorkerError>>());
    let panics = TearDown::blocking("panics", |()| -> Result<(), WorkerError> { panic!("a fault") });
    let (_scheduler, worker, mut stream) = started(
        |config| config.teardown_timeout = Duration::from_millis(200),
        |builder| builder.function(long).set_up(made).tear_down(takes).tear_down(hangs).tear_down(panics),
    )
    .await;
    stream.run("r", "long", json!({})).await;
    waits.await.unwrap();
    worker.shutdown().drain();
    assert!(stream.next_result().await.success);
    assert_eq!(notes.all(), ["run"], "the stream is still open: nothing is torn down");
    stream.ended().await.unwrap();
    stream.end_ok();
    worker.ended().await.expect("left as asked");
    assert_eq!(notes.all(), ["run", "tear-down"]);
}

#[test]
fn what_does_not_fit_together_is_refused_before_the_start() {
    let config = Embedded::settings("localhost:1");
    let build = |build: &dyn Fn(WorkerBuilder) -> WorkerBuilder| {
        let built = build(Worker::builder(config.clone()).function(number())).build();
        built.map(drop).map_err(|failure| failure.to_string())
    };
    let make = |name| SetUp::blocking(name, || Ok::<_, WorkerError>(Number(1)));
    let nobody = build(&|builder| builder).unwrap_err();
    assert!(nobody.starts_with("`number` takes `State<") && nobody.contains("#[worker_setup]"), "{nobody}");
    let twice = build(&|builder| builder.set_up(make("one")).set_up(make("two"))).unwrap_err();
    assert!(twice.starts_with("both `one` and `two` make"), "{twice}");
    let given = build(&|builder| builder.state(Number(2)).set_up(make("one"))).unwrap_err();
    assert!(given.contains("the builder's `state`"), "{given}");
    let taken = build(&|builder| {
        let close = TearDown::blocking("close", |(_,): (State<String>,)| Ok::<_, WorkerError>(()));
        builder.set_up(make("one")).tear_down(close)
    });
    assert!(taken.unwrap_err().starts_with("`close` takes `State<alloc::string::String>`"));
    assert_eq!(build(&|builder| builder.state(Number(2))), Ok(()));
}

#[tokio::test]
async fn a_process_is_set_up_and_torn_down_also_by_a_signal() {
    let scheduler = FakeScheduler::start().await;
    let settings = WorkerSettings::new(TENANTS, &scheduler);
    std::fs::write(settings.directory().join("ledger.json"), r#"{"acme": 41}"#).unwrap();
    let mut worker = settings.start();
    let mut stream = scheduler.accept().await;
    run_with(&mut stream, "r", "greet", json!({"name": "Ada"}), |run| run.tenant_id = "acme".into()).await;
    let result = stream.next_result().await;
    let reply: Value = unpack(&result.output_payload);
    assert_eq!(reply, json!({"text": "Hello, Ada!", "number": 42}));
    worker.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert!(worker.ended().await.success());
    let kept = std::fs::read_to_string(worker.directory().join("ledger.json")).unwrap();
    assert_eq!(kept, r#"{"acme":42}"#);
}

#[tokio::test]
async fn one_run_is_set_up_and_torn_down_as_well() {
    let settings = WorkerSettings::anywhere(TENANTS).argument("run").argument("greet").argument("Ada");
    let mut worker = settings.start();
    assert!(worker.ended().await.success(), "{}", worker.log());
    let kept = std::fs::read_to_string(worker.directory().join("ledger.json")).unwrap();
    assert_eq!(kept, r#"{"nobody":1}"#);
}

#[tokio::test]
async fn a_process_that_cannot_be_set_up_ends_with_a_code_of_its_own() {
    for arguments in [&[][..], &["run", "greet", "Ada"]] {
        let scheduler = FakeScheduler::start().await;
        let settings = WorkerSettings::new(TENANTS, &scheduler);
        let settings = arguments.iter().fold(settings, |settings, word| settings.argument(*word));
        std::fs::write(settings.directory().join("ledger.json"), "[").unwrap();
        let mut worker = settings.start();
        assert_eq!(worker.ended().await.code(), Some(9), "{}", worker.log());
        assert!(
            worker
                .log()
                .contains("error: the set-up `ledger` failed: invalid type: sequence, expected a map"),
            "{}",
            worker.log()
        );
        assert_eq!(
            std::fs::read_to_string(worker.directory().join("ledger.json")).unwrap(),
            "[",
            "it is left alone"
        );
    }
}
