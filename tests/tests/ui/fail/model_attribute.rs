use gen_worker::{ActionContext, ModelArtifacts, WorkerError, worker_function};
use serde_json::Value;

#[worker_function]
async fn mistakes(
    _ctx: ActionContext,
    _input: Value,
    #[model] _bare: ModelArtifacts,
    #[model(payload = "a", deployment = "b")] _both: ModelArtifacts,
    #[model(deploymnt = "b")] _unknown: ModelArtifacts,
) -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
