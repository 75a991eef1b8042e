use gen_worker::{ActionContext, WorkerError, worker_function};
use serde_json::Value;

struct Model;

impl Model {
    #[worker_function]
    async fn generate(&self, _ctx: ActionContext, input: Value) -> Result<Value, WorkerError> {
        Ok(input)
    }
}

fn main() {}
