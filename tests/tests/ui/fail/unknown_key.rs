use gen_worker::{ActionContext, WorkerError, worker_function};
use serde_json::Value;

#[worker_function(max_concurency = 1)]
async fn near(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function(timeout = 30)]
async fn far(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function(requires_gpu = true, requires_gpu = false)]
async fn twice(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

fn main() {}
