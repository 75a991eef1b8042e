//! A function with a model.

use gen_worker::{ActionContext, OrtModel, WorkerError, ort::ndarray::Array2, worker_function};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, JsonSchema)]
struct Infer {
    #[expect(dead_code, reason = "read by the worker, which injects the model")]
    model_ref: String,
    values: Vec<f32>,
}

#[derive(Serialize, JsonSchema)]
struct Inferred {
    values: Vec<f32>,
    model_id: String,
}

#[worker_function]
async fn infer(
    _ctx: ActionContext,
    input: Infer,
    #[model(payload = "model_ref")] model: OrtModel,
) -> Result<Inferred, WorkerError> {
    let x = Array2::from_shape_vec((1, input.values.len()), input.values)?;
    let mut outputs = model.run([("x", x)]).await?;
    let values = outputs.take_first::<f32>()?.into_iter().collect();
    Ok(Inferred { values, model_id: model.model_id().to_owned() })
}
