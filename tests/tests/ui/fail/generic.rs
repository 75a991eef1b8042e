use gen_worker::{ActionContext, WorkerError, worker_function};
use serde_json::Value;

#[worker_function]
async fn generic<T: Send>(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function]
unsafe fn dangerous(_ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function]
struct NoFunction;

fn main() {}
