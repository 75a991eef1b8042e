use gen_worker::{ActionContext, ModelArtifacts, WorkerError, worker_function};

#[worker_function]
async fn nothing(ctx: ActionContext) -> Result<(), WorkerError> {
    ctx.check_canceled()
}

#[worker_function]
async fn model_first(
    ctx: ActionContext,
    #[model(payload = "model_ref")] _unet: ModelArtifacts,
) -> Result<(), WorkerError> {
    ctx.check_canceled()
}

fn main() {}
