//! A picture goes in, a picture comes out.

use std::io::Cursor;

use gen_worker::{ActionContext, Asset, WorkerError, worker_function};
use image::{DynamicImage, ImageFormat, ImageReader};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Original {
    /// A PNG or JPEG.
    image: Asset,
    /// The longest side of the result.
    #[serde(default = "default_side")]
    #[schemars(range(min = 1, max = 4096))]
    side: u32,
}

fn default_side() -> u32 {
    256
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Thumbnail {
    image: Asset,
    width: u32,
    height: u32,
}

/// A plain `fn` has a thread of its own, which it may keep busy.
#[worker_function]
fn thumbnail(ctx: ActionContext, input: Original) -> Result<Thumbnail, WorkerError> {
    if !(1..=4096).contains(&input.side) {
        return Err(WorkerError::validation("side must be 1 to 4096"));
    }
    let small = decode(&input.image)?.thumbnail(input.side, input.side);
    ctx.progress(0.5, "encoding");
    let mut png = Cursor::new(Vec::new());
    small.write_to(&mut png, ImageFormat::Png)?;
    // Stored after the function has returned; the result waits for it.
    let image = ctx.attach("thumbnail.png", png.into_inner())?;
    Ok(Thumbnail { image, width: small.width(), height: small.height() })
}

/// What is no picture is the caller's mistake, not a fault of the worker.
fn decode(image: &Asset) -> Result<DynamicImage, WorkerError> {
    let reader = ImageReader::open(image.path()?)?.with_guessed_format()?;
    reader.decode().map_err(|error| WorkerError::validation("image cannot be decoded").caused_by(error))
}

gen_worker::main!();
