//! A model that the caller chooses, kept in memory between runs.

use gen_worker::{ActionContext, OrtModel, WorkerError, ort::ndarray::Array2, worker_function};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Numbers {
    values: Vec<f32>,
    /// Found in `models/` on this machine, at the hub where it is deployed.
    #[serde(default = "default_model")]
    #[expect(dead_code, reason = "read by the worker, to find the parameter `model`")]
    model_ref: String,
}

fn default_model() -> String {
    "demo/double_plus_one.onnx".to_owned()
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Answer {
    values: Vec<f32>,
}

#[worker_function(max_concurrency = 4)]
async fn infer(
    ctx: ActionContext,
    input: Numbers,
    #[model(payload = "model_ref")] model: OrtModel,
) -> Result<Answer, WorkerError> {
    ctx.check_canceled()?;
    let x = Array2::from_shape_vec((1, input.values.len()), input.values)?;
    let values = model.run([("x", x)]).await?.take_first::<f32>()?.into_iter().collect();
    Ok(Answer { values })
}

gen_worker::main!();
