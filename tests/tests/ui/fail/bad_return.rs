use gen_worker::{ActionContext, WorkerError, worker_function};
use serde_json::Value;

#[worker_function]
async fn missing(ctx: ActionContext, _input: Value) {
    ctx.progress(1.0, None);
}

#[worker_function]
async fn no_result(_ctx: ActionContext, input: Value) -> Value {
    input
}

#[worker_function]
fn iterator(_ctx: ActionContext, _input: Value) -> Result<impl Iterator<Item = i64>, WorkerError> {
    Ok(0..3)
}

fn main() {}
