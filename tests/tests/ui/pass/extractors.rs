//! What functions take after their payload.
#![deny(warnings)]

use gen_worker::{ActionContext, ModelArtifacts, State, WorkerError, function, worker_function};
use serde_json::{Value, json};

struct Palette;

#[worker_function]
async fn models(
    _ctx: ActionContext,
    _input: Value,
    #[model(payload = "model_ref")] unet: ModelArtifacts,
    palette: State<Palette>,
    #[model(deployment = "vae")] vae: ModelArtifacts,
) -> Result<String, WorkerError> {
    let _palette: &Palette = &palette;
    Ok(format!("{} {}", unet.model_id(), vae.model_id()))
}

#[worker_function]
fn blocking(
    _ctx: ActionContext,
    _input: Value,
    State(palette): State<Palette>,
    #[model(deployment = "vae")] _vae: ModelArtifacts,
) -> Result<(), std::io::Error> {
    drop(palette);
    Ok(())
}

fn main() {
    let spec = function!(models).spec().injection_json();
    assert_eq!(spec[0]["param"], "unet");
    assert_eq!(spec[0]["model_ref"], json!({"key": "model_ref", "source": "payload"}));
    assert_eq!(spec[1]["param"], "vae");
    assert_eq!(spec[1]["model_ref"], json!({"key": "vae", "source": "deployment"}));
    assert_eq!(spec.as_array().map(Vec::len), Some(2));
    assert_eq!(function!(blocking).spec().injections.len(), 1);
}
