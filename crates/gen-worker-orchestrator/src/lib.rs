//! A small orchestrator for gen-worker: one process, one folder, no service to install.
//!
//! It speaks the real stream, so a worker cannot tell it from a large one. Runs come in over HTTP/JSON or gRPC, wait in
//! a queue, and go to connected workers by free capacity. A result is acknowledged once it is stored; a retryable
//! failure is tried again; the runs of a lost worker wait for it and then go to another. Beside that it serves a folder
//! of models, keeps files for runs and callers, and hands out presigned upload addresses.
//!
//! Runs live in memory and in one file, `runs.redb` in the data folder, which survives the end of this process in
//! whatever way: nothing is answered, sent to a worker or acknowledged before the file has it. Ended runs are
//! remembered up to [`OrchestratorConfig::history`]; what a run said while it ran is not. [`QueueStore::Memory`] does
//! without the file, and [`QueueStore::Nats`] keeps runs on NATS servers, for any number of orchestrators.
//!
//! ```no_run
//! use gen_worker_orchestrator::{Orchestrator, OrchestratorClient, OrchestratorConfig, RunSubmission};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let orchestrator = Orchestrator::start(OrchestratorConfig::local(".gen-worker")).await?;
//! // … a worker connects to `orchestrator.grpc_addr()` …
//! let client = OrchestratorClient::new(orchestrator.base_url().clone(), None)?;
//! let submission = RunSubmission {
//!     function: "generate".to_owned(),
//!     payload: serde_json::json!({"prompt": "a cat"}),
//!     ..Default::default()
//! };
//! let run = client.run(&submission, |event| println!("{}", event.event_type)).await?;
//! println!("{:?}", run.output);
//! orchestrator.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! | route | |
//! |---|---|
//! | `GET /` | the dashboard, for people |
//! | `POST /v1/runs` | takes a [`RunSubmission`], perhaps with an `Idempotency-Key`: 202 `{"run_id"}`, 200 if it was taken before, 409 if its id or key names another, or was canceled, 429 if its tenant has too many waiting |
//! | `POST /v1/runs?wait_ms=` | the same, and waits: 200 once it has ended, 202 if it has not within the wait; refused at once |
//! | `GET /v1/runs?limit=`, `GET /v1/runs/{id}` | the newest runs without their outputs; one as a [`RunView`] |
//! | `GET /v1/runs/{id}/result?wait_ms=` | 200 once it has ended, 202 if it has not within the wait |
//! | `GET /v1/runs/{id}/events` | server-sent events, after `Last-Event-ID`; the last one is `result` |
//! | `POST /v1/runs/{id}/cancel` | 202: it was asked to stop, or will be refused when it is asked for; 200: it had ended |
//! | `GET /v1/workers`, `POST /v1/workers/{id}/drain` | who is connected; `?deadline_ms=` to finish and leave |
//! | `POST /v1/files?name=&tenant_id=`, `GET /v1/files/{ref}` | a caller's files; the answer is an asset for a payload |
//! | `POST /v1/presign` | `{"name", "content_type"?}` to an `output_upload` |
//! | `PUT`, `GET /presigned/{key}` | such an upload, and what was uploaded |
//! | `/api/v1/file/{ref}` | the file API of workers, with the token of each run |
//! | `GET /hub/{path}` | the folder of models |
//! | `GET /v1/openapi.json` | all of this, for programs |
//! | `GET /healthz` | `ok` |
//! | `GET /readyz` | `ok`, or 503 while no runs can be taken |
//! | `GET /metrics` | [`METRICS`] in Prometheus's text format |
//!
//! Whatever fails answers `{"error": {"code", "message", "remedy"}}`. A caller is the operator, who sees all, or a tenant,
//! who sees its own runs and files: [`OrchestratorConfig::api_token`] and [`OrchestratorConfig::tenant_tokens`].

mod auth;
mod broker;
mod client;
mod config;
mod convert;
mod dashboard;
mod digests;
mod dispatch;
mod error;
mod events;
mod files;
mod frontend;
mod http;
mod http_error;
mod hub;
mod intake;
mod openapi;
mod orchestrator;
mod peers;
mod pipe;
mod presign;
mod queue;
mod rate;
mod realtime;
mod run;
mod runs;
mod scheduler;
mod serve;
mod sse;
mod stats;
mod store;
mod tombstones;
mod uploads;
mod workers;

pub use crate::{
    client::{ClientError, OrchestratorClient},
    config::{NatsConfig, OrchestratorConfig, QueueStore},
    error::OrchestratorError,
    events::RunEvent,
    orchestrator::Orchestrator,
    queue::{embedded::JournalError, fair::Weights, limits::TenantLimits},
    run::{RunError, RunState, RunSubmission, RunView},
    stats::METRICS,
};
