//! The whole worker, from outside: real processes, real gRPC and HTTP on loopback.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod cancel;
mod checkpoints;
mod connection;
mod credentials;
mod delivery;
mod diagnosis;
mod drain;
mod files;
mod gpu;
mod inference;
mod isolation;
mod job;
mod journal;
mod models;
mod orchestrator;
mod outputs;
mod prefetch;
#[cfg(target_os = "linux")]
mod process;
mod realtime;
mod reconnect;
mod registration;
mod residency;
mod run;
mod s3;
mod secrets;
mod seed;
mod soak;
mod start;
mod status;
mod tls;
mod upscale;
mod verbs;

use gen_worker_testkit::{FakeScheduler, WorkerStream};
use gen_worker_tests::{WorkerProcess, WorkerSettings};

/// The conformance worker.
const CONFORMANCE: &str = env!("CARGO_BIN_EXE_conformance-under-test");

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
