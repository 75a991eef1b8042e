//! The worker under test: functions that do nothing, wait, talk, and make outputs.

// The macros expand to paths under `::gen_worker`.
extern crate gen_worker_bare as gen_worker;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use gen_worker::{ActionContext, RawOutput, WorkerError, worker_function};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize, JsonSchema)]
struct Text {
    text: String,
}

#[worker_function]
async fn echo(_ctx: ActionContext, input: Text) -> Result<Text, WorkerError> {
    Ok(input)
}

#[derive(Deserialize, JsonSchema)]
struct Sleep {
    ms: u64,
}

#[derive(Serialize, JsonSchema)]
struct Done {}

#[worker_function]
async fn sleep(_ctx: ActionContext, input: Sleep) -> Result<Done, WorkerError> {
    tokio::time::sleep(Duration::from_millis(input.ms)).await;
    Ok(Done {})
}

#[derive(Deserialize, JsonSchema)]
struct Flood {
    events: u32,
}

#[worker_function]
fn flood(ctx: ActionContext, input: Flood) -> Result<Done, WorkerError> {
    for event in 1..=input.events {
        ctx.progress(f64::from(event) / f64::from(input.events), "flood");
    }
    Ok(Done {})
}

/// Holds a core for this long.
#[worker_function]
fn spin(_ctx: ActionContext, input: Sleep) -> Result<Done, WorkerError> {
    let until = Instant::now() + Duration::from_millis(input.ms);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    Ok(Done {})
}

/// The same where it is not expected, on the threads that serve every async function.
#[worker_function]
async fn hog(ctx: ActionContext, input: Sleep) -> Result<Done, WorkerError> {
    spin(ctx, input)
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    path: PathBuf,
}

#[worker_function]
async fn file(_ctx: ActionContext, input: Named) -> Result<RawOutput, WorkerError> {
    Ok(RawOutput::file(input.path, "application/octet-stream"))
}

#[derive(Deserialize, JsonSchema)]
struct Sized {
    size: usize,
}

#[worker_function]
async fn bytes(_ctx: ActionContext, input: Sized) -> Result<RawOutput, WorkerError> {
    Ok(RawOutput::bytes(vec![7; input.size], "application/octet-stream"))
}

gen_worker::main!();
