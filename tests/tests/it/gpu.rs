//! Places on a GPU: taken for the call of a function, free when it returns.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use gen_worker::{
    Call, Function, Ports, RawOutput, ResourceRequirements, RuntimeConfig, Worker, WorkerError,
};
use gen_worker_core::{
    JobFailure, Secret,
    ports::{OutputStore, OutputTarget, StoredOutput, Watch},
};
use gen_worker_proto::scheduler::{self as v1, worker_scheduler_message::Msg};
use gen_worker_runtime::FakeGpu;
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{Embedded, pack};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

/// How long a test waits for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Says that it has begun, and ends when the test lets it.
#[derive(Clone)]
struct Step {
    begun: mpsc::UnboundedSender<String>,
    ends: Arc<Semaphore>,
}

impl Step {
    async fn take(&self, name: &str) {
        self.begun.send(name.to_owned()).expect("the test listens");
        self.ends.acquire().await.expect("it is never closed").forget();
    }
}

/// A store for outputs that takes its time.
#[async_trait]
impl OutputTarget for Step {
    async fn store(&self, _output: &RawOutput, _watch: &Watch) -> Result<StoredOutput, JobFailure> {
        self.take("store").await;
        Ok(StoredOutput {
            url: "https://files.example/x".to_owned(),
            key: None,
            bucket: None,
            size_bytes: 0,
            sha256: String::new(),
            content_type: String::new(),
            etag: None,
        })
    }
}

impl OutputStore for Step {
    fn target(&self, _output_upload: Secret<String>) -> Result<Arc<dyn OutputTarget>, JobFailure> {
        Ok(Arc::new(self.clone()))
    }

    fn settle(&self) {
        self.begun.send("settle".to_owned()).expect("the test listens");
    }
}

/// A worker with so many GPUs, whose one function and whose store the test holds.
struct Desk {
    worker: Embedded,
    stream: WorkerStream,
    begun: mpsc::UnboundedReceiver<String>,
    calls: Arc<Semaphore>,
    stores: Arc<Semaphore>,
}

impl Desk {
    async fn open(scheduler: &FakeScheduler, gpus: u32) -> Self {
        let gpu = FakeGpu { count: gpus, memory_bytes: 1, name: String::new(), driver: String::new() };
        let settings = RuntimeConfig {
            fake_gpu: Some(gpu),
            heartbeat: Duration::from_millis(20),
            ..Embedded::settings(&scheduler.addr().to_string())
        };
        let (begin, begun) = mpsc::unbounded_channel();
        let step = || Step { begun: begin.clone(), ends: Arc::new(Semaphore::new(0)) };
        let (call, store) = (step(), step());
        let (calls, stores) = (call.ends.clone(), store.ends.clone());
        let ports = Ports { outputs: Arc::new(store), ..Ports::default() };
        let worker = Embedded::start(Worker::builder(settings).function(draw(call)).ports(ports));
        let mut stream = scheduler.accept().await;
        stream.next_registration().await;
        Self { worker, stream, begun, calls, stores }
    }

    async fn run(&mut self, run_id: &str, timeout_ms: i64) {
        let payload = pack(&json!({"output_upload": {}}));
        let request = v1::TaskExecutionRequest {
            run_id: run_id.into(),
            function_name: "draw".into(),
            input_payload: payload.into(),
            timeout_ms,
            ..Default::default()
        };
        self.stream.send(Msg::RunRequest(request)).await;
    }

    async fn next_begun(&mut self) -> String {
        timeout(PATIENCE, self.begun.recv()).await.expect("something begins").expect("the worker lives")
    }

    /// Waits for a heartbeat that says so.
    async fn is_busy(&mut self, busy: bool) {
        loop {
            let resources = self.stream.next_registration().await.resources.expect("it names its resources");
            if resources.gpu_is_busy == busy {
                return;
            }
        }
    }
}

fn draw(step: Step) -> Function {
    Function::builder::<Value>("draw", "tests")
        .resources(ResourceRequirements { requires_gpu: true, ..Default::default() })
        .asynchronous(move |call: Call<Value>| {
            let step = step.clone();
            async move {
                step.take(call.context.run_id()).await;
                Ok::<_, WorkerError>(())
            }
        })
        .unwrap()
}

#[tokio::test]
async fn what_outputs_have_begun_is_settled_before_the_worker_ends() {
    let scheduler = FakeScheduler::start().await;
    let mut desk = Desk::open(&scheduler, 1).await;
    desk.worker.leave(desk.stream).await;
    assert_eq!(desk.begun.recv().await.as_deref(), Some("settle"));
}

#[tokio::test]
async fn a_gpu_is_free_when_its_function_returns_and_not_before() {
    let scheduler = FakeScheduler::start().await;
    let mut desk = Desk::open(&scheduler, 1).await;
    desk.run("first", 0).await;
    assert_eq!(desk.next_begun().await, "first");
    // While the first has the one place, the second waits for it until its time is over.
    desk.run("in vain", 100).await;
    assert_eq!(desk.stream.next_result().await.error_type, "timeout");
    desk.run("second", 0).await;
    desk.calls.add_permits(1);
    let mut begun = [desk.next_begun().await, desk.next_begun().await];
    begun.sort();
    assert_eq!(begun, ["second", "store"], "the second draws while the first is being stored");
    desk.calls.add_permits(1);
    assert_eq!(desk.next_begun().await, "store");
    desk.stores.add_permits(2);
    for _ in 0..2 {
        assert!(desk.stream.next_result().await.success);
    }
    desk.worker.leave(desk.stream).await;
}

#[tokio::test]
async fn a_gpu_is_busy_until_the_last_function_has_returned() {
    let scheduler = FakeScheduler::start().await;
    let mut desk = Desk::open(&scheduler, 2).await;
    desk.is_busy(false).await;
    for run_id in ["one", "two"] {
        desk.run(run_id, 0).await;
        assert_eq!(desk.next_begun().await, run_id, "each device has a place");
    }
    desk.calls.add_permits(1);
    assert_eq!(desk.next_begun().await, "store");
    // Of what was said before, the reader may have missed the last words: what counts is said after the store began.
    desk.stores.add_permits(1);
    desk.stream.next_result().await;
    let resources = desk.stream.next_registration().await.resources.expect("it names its resources");
    assert!(resources.gpu_is_busy, "the other still draws");
    desk.calls.add_permits(1);
    assert_eq!(desk.next_begun().await, "store");
    desk.is_busy(false).await;
    desk.stores.add_permits(1);
    desk.stream.next_result().await;
    desk.worker.leave(desk.stream).await;
}
