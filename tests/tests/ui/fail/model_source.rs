use gen_worker::{ActionContext, ModelArtifacts, State, WorkerError, worker_function};
use serde_json::Value;

#[worker_function]
async fn forgotten(_ctx: ActionContext, _input: Value, _unet: ModelArtifacts) -> Result<(), WorkerError> {
    Ok(())
}

#[worker_function]
async fn needless(
    _ctx: ActionContext,
    _input: Value,
    #[model(payload = "model_ref")] _state: State<String>,
) -> Result<(), WorkerError> {
    Ok(())
}

fn main() {}
