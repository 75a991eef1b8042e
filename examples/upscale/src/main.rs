//! A worker with one function, which enlarges a picture to twice its size.

use gen_worker::{ActionContext, Asset, OrtModel, WorkerError, worker_function};
use ndarray::{Array4, Ix4};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use upscale::{EnlargeError, Picture};

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What `upscale` takes.
#[derive(Deserialize, JsonSchema)]
struct Upscale {
    /// A PNG or JPEG picture of at most 4096 columns and rows.
    image: Asset,
    /// The network: one that doubles pictures and eats 7 pixels on each side.
    #[serde(default = "photo_network")]
    #[expect(dead_code, reason = "the worker reads it, to find the parameter `model`")]
    model_ref: String,
    /// Columns and rows that are enlarged at once. Larger tiles take more memory and answer a cancel later.
    #[serde(default = "usual_tile")]
    #[schemars(range(min = 16, max = 1024))]
    tile: u32,
}

/// What `upscale` gives.
#[derive(Serialize, JsonSchema)]
struct Enlarged {
    /// The picture, as PNG.
    image: Asset,
    /// Its columns.
    width: u32,
    /// Its rows.
    height: u32,
}

fn photo_network() -> String {
    "waifu2x/upconv_7/scale2x.onnx".into()
}

fn usual_tile() -> u32 {
    128
}

#[worker_function(model_family = "waifu2x")]
fn upscale(
    ctx: ActionContext,
    input: Upscale,
    #[model(payload = "model_ref")] model: OrtModel,
) -> Result<Enlarged, WorkerError> {
    if !(16..=1024).contains(&input.tile) {
        return Err(WorkerError::validation(format!("tile must be 16 to 1024, not {}", input.tile)));
    }
    let file = input.image.read(MAX_FILE_BYTES)?;
    let picture = Picture::decode(&file).map_err(|error| WorkerError::validation(error.to_string()))?;
    let network = |pixels| {
        ctx.check_canceled()?;
        run(&model, pixels)
    };
    let progress = |done: usize, total: usize| {
        ctx.progress(done as f64 / total as f64, format!("tile {done} of {total}").as_str());
    };
    let at_once = model.calls_at_once();
    let enlarged = picture.enlarge(input.tile, at_once, network, progress).map_err(|error| match error {
        EnlargeError::Network(error) => error,
        other => WorkerError::validation(other.to_string()),
    })?;
    let (width, height) = enlarged.colours.dimensions();
    let image = ctx.block_on(ctx.save_bytes(&ctx.output_ref("enlarged.png"), enlarged.encode()?))?;
    Ok(Enlarged { image, width, height })
}

/// Runs the network, whatever its input and output are called.
fn run(model: &OrtModel, pixels: Array4<f32>) -> Result<Array4<f32>, WorkerError> {
    let name = model.inputs().first().map_or("input", |input| &input.name);
    let output = model.run_blocking([(name, pixels)])?.take_first::<f32>()?;
    output
        .into_dimensionality::<Ix4>()
        .map_err(|_| WorkerError::validation(format!("{} is no network for pictures", model.model_id())))
}

gen_worker::main!();
