use gen_worker::{ActionContext, WorkerError, worker_function};
use serde_json::Value;

struct Image;

#[worker_function]
async fn generate(_ctx: ActionContext, _input: Value) -> Result<Image, WorkerError> {
    Ok(Image)
}

fn main() {}
