use gen_worker::{ActionContext, WorkerError, worker_function};
use serde_json::Value;

#[worker_function(max_concurrency = 0)]
async fn zero(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function(max_concurrency = -1)]
async fn negative(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function(max_concurrency = "two")]
async fn text(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

fn main() {}
