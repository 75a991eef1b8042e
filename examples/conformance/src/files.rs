//! Functions about files: read, saved, returned.

use bytes::Bytes;
use futures_util::{Stream, stream};
use gen_worker::{ActionContext, Asset, ByteStream, RawOutput, WorkerError, worker_function};
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
    name: Option<String>,
    /// Whether it is made while it is stored.
    #[serde(default)]
    stream: bool,
}

fn octets() -> String {
    "application/octet-stream".to_owned()
}

#[worker_function]
async fn raw(_ctx: ActionContext, input: Raw) -> Result<RawOutput, WorkerError> {
    let data = pattern(input.size);
    let output = match input.stream {
        true => RawOutput::stream(chunks(&data), input.content_type),
        false => RawOutput::bytes(data, input.content_type),
    };
    Ok(match input.name {
        Some(name) => output.named(name),
        None => output,
    })
}

#[derive(Deserialize, JsonSchema)]
struct Attach {
    names: Vec<String>,
    size: usize,
}

#[derive(Serialize, JsonSchema)]
struct Attached {
    files: Vec<Asset>,
}

/// Attaches its files, the last one as a stream.
#[worker_function(requires_gpu = true)]
async fn attach(ctx: ActionContext, input: Attach) -> Result<Attached, WorkerError> {
    let data = pattern(input.size);
    let mut files = Vec::new();
    for (left, name) in (0..input.names.len()).rev().zip(&input.names) {
        files.push(match left {
            0 => ctx.attach(name, ByteStream::new(chunks(&data)))?,
            _ => ctx.attach(name, data.clone())?,
        });
    }
    Ok(Attached { files })
}

#[worker_function]
async fn save_stream(ctx: ActionContext, input: Save) -> Result<Saved, WorkerError> {
    let (reference, chunks) = (ctx.output_ref(&input.name), chunks(&pattern(input.size)));
    let file = match input.create {
        true => ctx.save_stream_create(&reference, chunks).await?,
        false => ctx.save_stream(&reference, chunks).await?,
    };
    Ok(Saved { file })
}

/// The same data in pieces.
fn chunks(data: &[u8]) -> impl Stream<Item = Result<Bytes, WorkerError>> + Send + 'static {
    let pieces: Vec<_> = data.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

/// Byte `i` is `i mod 251`.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}
