use gen_worker::{ActionContext, worker_function};
use serde_json::Value;

struct Mine;

#[worker_function]
async fn generate(_ctx: ActionContext, input: Value) -> Result<Value, Mine> {
    Ok(input)
}

fn main() {}
