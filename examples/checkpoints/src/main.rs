//! A worker with one function, which runs whatever checkpoint its caller names.

use gen_worker::{ActionContext, OrtModel, WorkerError, ort::ndarray::Array2, worker_function};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `apply` takes.
#[derive(Deserialize, JsonSchema)]
struct Apply {
    /// The checkpoint.
    #[expect(dead_code, reason = "the worker reads it, to find the parameter `checkpoint`")]
    model_ref: String,
    /// What each of the checkpoint's inputs is.
    value: f32,
}

/// What `apply` gives.
#[derive(Serialize, JsonSchema)]
struct Applied {
    /// The mean of the checkpoint's outputs.
    value: f32,
    /// The checkpoint that was run.
    model_id: String,
}

#[worker_function(model_family = "zoo")]
async fn apply(
    _ctx: ActionContext,
    input: Apply,
    #[model(payload = "model_ref")] checkpoint: OrtModel,
) -> Result<Applied, WorkerError> {
    let length = checkpoint.inputs().first().and_then(|input| input.shape.last().copied().flatten());
    let length = length.ok_or_else(|| WorkerError::validation("a checkpoint takes rows of one length"))?;
    let mut outputs = checkpoint.run([("x", Array2::from_elem((1, length), input.value))]).await?;
    let value = outputs.take_first::<f32>()?.mean().unwrap_or_default();
    Ok(Applied { value, model_id: checkpoint.model_id().to_owned() })
}

gen_worker::main!();
