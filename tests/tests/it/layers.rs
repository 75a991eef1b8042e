//! What stands around every call of a function.

use std::{
    sync::{Arc, Mutex, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use gen_worker::{
    Call, DeltaStream, Function, ResourceRequirements, RuntimeConfig, Worker, WorkerError, WorkerFailure,
    layer::{Answer, BoxError, BoxFuture, Handler, Invocation, Layer, LayerError, Service},
};
use gen_worker_runtime::FakeGpu;
use gen_worker_testkit::FakeScheduler;
use gen_worker_tests::{Embedded, WorkerSettings, unpack};
use serde_json::{Value, json};
use tokio::{sync::Notify, time::timeout};

use super::{TENANTS, run_with};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A layer of what it does with each call.
#[derive(Clone)]
struct Around<F>(F);

#[derive(Clone)]
struct Surrounded<F>(F, Handler);

/// What a layer makes of a call.
type Passed = BoxFuture<'static, Result<Answer, BoxError>>;

impl<F: Clone> Layer<Handler> for Around<F> {
    type Service = Surrounded<F>;

    fn layer(&self, inner: Handler) -> Surrounded<F> {
        Surrounded(self.0.clone(), inner)
    }
}

impl<F: Fn(Invocation, &mut Handler) -> Passed> Service<Invocation> for Surrounded<F> {
    type Response = Answer;
    type Error = BoxError;
    type Future = Passed;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.1.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, call: Invocation) -> Passed {
        (self.0)(call, &mut self.1)
    }
}

fn refused(error: WorkerError) -> Result<Answer, BoxError> {
    Err(LayerError::from(error).into())
}

/// Notes who calls what, in the order in which calls go in.
fn noting(
    name: &'static str,
    notes: &Arc<Mutex<Vec<String>>>,
) -> Around<impl Fn(Invocation, &mut Handler) -> Passed + Clone + use<>> {
    let notes = notes.clone();
    Around(move |call: Invocation, inner: &mut Handler| -> Passed {
        notes.lock().unwrap().push(format!("{name} {}", call.function().name));
        if call.context().tenant_id() == Some("banned") {
            return Box::pin(async { refused(WorkerError::auth("not for this tenant")) });
        }
        let answer = inner.call(call);
        Box::pin(async move { Ok(answer.await?) })
    })
}

/// Gives up on each call when it is told to, as tower's `timeout` does when the time is over.
fn impatient(given_up: &Arc<Notify>) -> Around<impl Fn(Invocation, &mut Handler) -> Passed + Clone + use<>> {
    let given_up = given_up.clone();
    Around(move |call: Invocation, inner: &mut Handler| -> Passed {
        let (answer, given_up) = (inner.call(call), given_up.clone());
        Box::pin(async move {
            tokio::select! {
                answer = answer => Ok(answer?),
                () = given_up.notified() => refused(WorkerError::retryable("took too long")),
            }
        })
    })
}

fn functions() -> [Function; 3] {
    let plain = Function::builder::<Value>("plain", "tests")
        .blocking(|call: Call<Value>| Ok::<_, WorkerError>(call.input))
        .unwrap();
    let fails = Function::builder::<Value>("fails", "tests")
        .asynchronous(|_: Call<Value>| async { Err::<(), _>(WorkerError::validation("no such style")) })
        .unwrap();
    let streams = Function::builder::<Value>("streams", "tests")
        .resources(ResourceRequirements { requires_gpu: true, ..Default::default() })
        .asynchronous(|_: Call<Value>| async {
            let items = futures_util::stream::iter([1, 2, 3].map(Ok));
            Ok::<_, WorkerError>(DeltaStream::new(items))
        })
        .unwrap();
    [plain, fails, streams]
}

#[tokio::test]
async fn every_call_goes_through_the_layers_the_first_one_first() {
    let scheduler = FakeScheduler::start().await;
    let notes = Arc::<Mutex<Vec<String>>>::default();
    let gpu = FakeGpu { count: 1, memory_bytes: 1, name: String::new(), driver: String::new() };
    let settings = RuntimeConfig { fake_gpu: Some(gpu), ..Embedded::settings(&scheduler.addr().to_string()) };
    let worker = Worker::builder(settings)
        .functions(functions())
        .layer(noting("outer", &notes))
        .layer(noting("inner", &notes));
    let worker = Embedded::start(worker);
    let mut stream = scheduler.accept().await;
    let noted = || std::mem::take(&mut *notes.lock().unwrap());

    stream.run("r1", "plain", json!({"n": 1})).await;
    let result = stream.next_result().await;
    assert_eq!(unpack::<Value>(&result.output_payload), json!({"n": 1}));
    assert_eq!(noted(), ["outer plain", "inner plain"]);

    stream.run("r2", "fails", json!({})).await;
    let result = stream.next_result().await;
    assert_eq!((result.error_type.as_str(), result.safe_message.as_str()), ("validation", "no such style"));

    // Twice: the place on the GPU is given back with the last delta.
    for run in ["r3", "r4"] {
        stream.run(run, "streams", json!({})).await;
        assert!(stream.next_result().await.success);
        let deltas =
            stream.events(run).into_iter().filter(|event| event.event_type == "output.delta").count();
        assert_eq!(deltas, 3);
    }
    noted();

    run_with(&mut stream, "r5", "plain", json!({}), |run| run.tenant_id = "banned".into()).await;
    let result = stream.next_result().await;
    assert_eq!((result.error_type.as_str(), result.safe_message.as_str()), ("auth", "not for this tenant"));
    assert_eq!(noted(), ["outer plain"], "what is refused goes no further in");
    worker.leave(stream).await;
}

#[tokio::test]
async fn each_tenant_has_its_share_of_the_example() {
    let scheduler = FakeScheduler::start().await;
    let _worker = WorkerSettings::new(TENANTS, &scheduler).start();
    let mut stream = scheduler.accept().await;
    for n in 0..3 {
        run_with(&mut stream, &format!("a{n}"), "greet", json!({"name": "Ada"}), |run| {
            run.tenant_id = "a".into()
        })
        .await;
        assert!(stream.next_result().await.success);
    }
    run_with(&mut stream, "a3", "greet", json!({"name": "Ada"}), |run| run.tenant_id = "a".into()).await;
    let refused = stream.next_result().await;
    assert_eq!((refused.error_type.as_str(), refused.retryable), ("retryable", true));
    assert!(refused.safe_message.starts_with("too many runs of this tenant; again in"), "{refused:?}");
    run_with(&mut stream, "b0", "greet", json!({"name": "Bob"}), |run| run.tenant_id = "b".into()).await;
    assert!(stream.next_result().await.success, "another tenant is not refused");
}

/// Starts a task where it is made, as tower's `buffer` does.
struct Starting;

impl Layer<Handler> for Starting {
    type Service = Handler;

    fn layer(&self, inner: Handler) -> Handler {
        #[expect(clippy::disallowed_methods, reason = "layers of others do")]
        tokio::spawn(async {});
        inner
    }
}

// On a thread without a runtime of its own, as `main` is.
#[test]
fn a_layer_may_start_a_task_where_it_is_made() {
    let builder = Worker::builder(Embedded::settings("127.0.0.1:1")).functions(functions());
    builder.layer(Starting).build().unwrap();
}

#[tokio::test]
async fn a_thread_that_a_layer_leaves_behind_is_told_to_stop_and_counted() {
    let (given_up, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (noticed, notices) = mpsc::channel::<()>();
    let (end, ends) = mpsc::channel::<()>();
    let (began, noticed, ends) = (begun.clone(), Mutex::new(noticed), Mutex::new(ends));
    let stubborn = Function::builder::<Value>("stubborn", "tests")
        .blocking(move |call: Call<Value>| {
            began.notify_one();
            while !call.context.is_canceled() {
                std::thread::yield_now();
            }
            let _ = noticed.lock().unwrap().send(());
            // It ends when the test does.
            let _ = ends.lock().unwrap().recv();
            Ok::<_, WorkerError>(())
        })
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let mut settings = Embedded::settings(&scheduler.addr().to_string());
    settings.max_zombies = 0;
    let worker = Worker::builder(settings).function(stubborn).layer(impatient(&given_up));
    let worker = Embedded::start(worker);
    let mut stream = scheduler.accept().await;
    stream.run("r", "stubborn", json!({})).await;
    begun.notified().await;
    given_up.notify_one();
    let result = stream.next_result().await;
    assert_eq!((result.error_type.as_str(), result.safe_message.as_str()), ("retryable", "took too long"));
    tokio::task::spawn_blocking(move || notices.recv_timeout(PATIENCE).expect("it is told to stop"))
        .await
        .unwrap();
    stream.ended().await.unwrap();
    stream.end_ok();
    let ended = timeout(PATIENCE, worker.ended()).await.expect("there are too many such threads");
    assert!(matches!(ended, Err(WorkerFailure::Zombies { count: 1 })), "{ended:?}");
    drop(end);
}

#[tokio::test]
async fn a_thread_that_a_layer_leaves_behind_holds_a_drain_no_longer_than_it_lasts() {
    let (given_up, begun) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let began = begun.clone();
    let heeds = Function::builder::<Value>("heeds", "tests")
        .blocking(move |call: Call<Value>| {
            began.notify_one();
            while !call.context.is_canceled() {
                std::thread::yield_now();
            }
            Ok::<_, WorkerError>(())
        })
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let mut settings = Embedded::settings(&scheduler.addr().to_string());
    settings.cancel_grace = Duration::from_secs(3600);
    let worker = Worker::builder(settings).function(heeds).layer(impatient(&given_up));
    let worker = Embedded::start(worker);
    let mut stream = scheduler.accept().await;
    stream.run("r", "heeds", json!({})).await;
    begun.notified().await;
    given_up.notify_one();
    assert_eq!(stream.next_result().await.safe_message, "took too long");
    timeout(PATIENCE, worker.leave(stream)).await.expect("the thread has ended");
}
