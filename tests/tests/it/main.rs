//! The whole worker, from outside: real processes, real gRPC and HTTP on loopback.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod cancel;
mod checkpoints;
mod connection;
mod credentials;
mod dashboard;
mod delivery;
#[cfg(target_os = "linux")]
mod dev;
mod diagnosis;
mod drain;
mod files;
mod gpu;
mod hooks;
mod inference;
mod isolation;
mod job;
mod journal;
mod layers;
mod models;
mod orchestrator;
mod outputs;
mod prefetch;
#[cfg(target_os = "linux")]
mod process;
mod realtime;
mod reconnect;
mod registration;
mod reports;
mod residency;
mod run;
mod s3;
mod secrets;
mod seed;
mod soak;
mod start;
mod status;
mod tls;
mod traces;
mod upscale;
mod verbs;

use gen_worker_proto::scheduler::{TaskExecutionRequest, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerProcess, WorkerSettings};

/// The conformance worker.
const CONFORMANCE: &str = env!("CARGO_BIN_EXE_conformance-under-test");

/// The worker that enlarges pictures.
#[cfg(target_os = "linux")]
const UPSCALE: &str = env!("CARGO_BIN_EXE_upscale-under-test");

/// The worker with hooks and a layer.
const TENANTS: &str = env!("CARGO_BIN_EXE_tenants-under-test");

/// Sends a run that `change` makes another than the plainest.
async fn run_with(
    stream: &mut WorkerStream,
    run_id: &str,
    function: &str,
    payload: serde_json::Value,
    change: impl FnOnce(&mut TaskExecutionRequest),
) {
    let mut request = TaskExecutionRequest {
        run_id: run_id.to_owned(),
        function_name: function.to_owned(),
        input_payload: gen_worker_tests::pack(&payload).into(),
        ..TaskExecutionRequest::default()
    };
    change(&mut request);
    stream.send(Msg::RunRequest(request)).await;
}

/// The conformance worker with these settings, connected and registered.
async fn worker(settings: &[(&str, &str)]) -> (FakeScheduler, WorkerProcess, WorkerStream) {
    let scheduler = FakeScheduler::start().await;
    let mut worker = WorkerSettings::new(CONFORMANCE, &scheduler);
    for (name, value) in settings {
        worker = worker.set(name, *value);
    }
    let process = worker.start();
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    (scheduler, process, stream)
}
