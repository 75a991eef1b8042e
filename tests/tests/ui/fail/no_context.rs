use gen_worker::{WorkerError, worker_function};
use serde_json::Value;

#[worker_function]
async fn generate(input: Value) -> Result<Value, WorkerError> {
    Ok(input)
}

#[worker_function]
async fn borrowed(ctx: &gen_worker::ActionContext, input: Value) -> Result<Value, WorkerError> {
    ctx.progress(1.0, None);
    Ok(input)
}

fn main() {}
