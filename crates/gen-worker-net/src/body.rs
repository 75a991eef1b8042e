//! A request's body as a stream of known length that says when it moves.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use gen_worker_core::OutputBody;
use tokio::{fs::File, io::AsyncReadExt, sync::Notify};
use tokio_util::io::ReaderStream;

/// How much is handed to the connection at once.
const CHUNK_BYTES: usize = 256 << 10;

/// Opens a body anew. `moved` is told of each chunk that is taken.
pub(crate) async fn open(
    body: &OutputBody,
    moved: Arc<Notify>,
) -> io::Result<(u64, BoxStream<'static, io::Result<Bytes>>)> {
    let (length, chunks) = match body {
        OutputBody::Bytes(bytes) => (bytes.len() as u64, slices(bytes.clone())),
        OutputBody::File(path) => read(path).await?,
    };
    let chunks = chunks.inspect(move |_| moved.notify_one());
    Ok((length, chunks.boxed()))
}

fn slices(bytes: Bytes) -> BoxStream<'static, io::Result<Bytes>> {
    let next =
        |mut rest: Bytes| (!rest.is_empty()).then(|| (Ok(rest.split_to(rest.len().min(CHUNK_BYTES))), rest));
    stream::iter(std::iter::successors(next(bytes), move |(_, rest)| next(rest.clone())))
        .map(|(chunk, _)| chunk)
        .boxed()
}

async fn read(path: &Path) -> io::Result<(u64, BoxStream<'static, io::Result<Bytes>>)> {
    let file = File::open(path).await?;
    let length = file.metadata().await?.len();
    // A file that grows must not send more than the length that was announced.
    let chunks = ReaderStream::with_capacity(file.take(length), CHUNK_BYTES);
    Ok((length, chunks.boxed()))
}
