//! Functions about files: read, saved, returned.

use gen_worker::{ActionContext, Asset, RawOutput, WorkerError, worker_function};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, JsonSchema)]
struct Input {
    file: Asset,
}

#[derive(Serialize, JsonSchema)]
struct Found {
    sha256: Option<String>,
    size_bytes: u64,
    mime_type: Option<String>,
}

#[worker_function]
async fn digest(_ctx: ActionContext, input: Input) -> Result<Found, WorkerError> {
    let file = input.file;
    let size_bytes = file.open()?.metadata()?.len();
    let (sha256, mime_type) = (file.sha256().map(str::to_owned), file.mime_type().map(str::to_owned));
    Ok(Found { sha256, size_bytes, mime_type })
}

#[derive(Deserialize, JsonSchema)]
struct Save {
    name: String,
    size: usize,
    #[serde(default)]
    create: bool,
}

#[derive(Serialize, JsonSchema)]
struct Saved {
    file: Asset,
}

#[worker_function]
async fn save(ctx: ActionContext, input: Save) -> Result<Saved, WorkerError> {
    let (reference, data) = (ctx.output_ref(&input.name), pattern(input.size));
    let file = match input.create {
        true => ctx.save_bytes_create(&reference, data).await?,
        false => ctx.save_bytes(&reference, data).await?,
    };
    Ok(Saved { file })
}

#[derive(Deserialize, JsonSchema)]
struct Raw {
    size: usize,
    #[serde(default = "octets")]
    content_type: String,
}

fn octets() -> String {
    "application/octet-stream".to_owned()
}

#[worker_function]
async fn raw(_ctx: ActionContext, input: Raw) -> Result<RawOutput, WorkerError> {
    Ok(RawOutput::bytes(pattern(input.size), input.content_type))
}

/// Byte `i` is `i mod 251`.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}
