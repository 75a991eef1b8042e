//! A request's body: opened anew for each try, of known length, and telling when it moves.

use std::{io, path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use gen_worker_core::OutputBody;
use tokio::{fs::File, io::AsyncReadExt, sync::Notify};
use tokio_util::io::ReaderStream;

/// How much is handed to the connection at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What a request sends.
pub trait BodySource: Send + Sync {
    /// Opens it from its start. Called once for each try.
    ///
    /// # Errors
    /// It cannot be read, or not once more. The request fails with it, and is not tried again.
    fn open(&self) -> BoxFuture<'_, io::Result<OpenBody>>;
}

/// A body that is about to be sent.
pub struct OpenBody {
    /// Its length in bytes, which is announced.
    pub length: u64,
    /// Its chunks: `length` bytes in all.
    pub chunks: BoxStream<'static, io::Result<Bytes>>,
}

impl BodySource for OutputBody {
    fn open(&self) -> BoxFuture<'_, io::Result<OpenBody>> {
        async move {
            match self {
                OutputBody::Bytes(bytes) => {
                    Ok(OpenBody { length: bytes.len() as u64, chunks: slices(bytes.clone()) })
                }
                OutputBody::File(path) => read(path).await,
                OutputBody::Stream(_) => Err(cannot_be_opened_again()),
            }
        }
        .boxed()
    }
}

/// Opens a body. `moved` is told of each chunk that is taken.
pub(crate) async fn open(source: &dyn BodySource, moved: Arc<Notify>) -> io::Result<OpenBody> {
    let OpenBody { length, chunks } = source.open().await?;
    let chunks = chunks.inspect(move |_| moved.notify_one()).boxed();
    Ok(OpenBody { length, chunks })
}

fn cannot_be_opened_again() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "a stream is put on disk before it is sent")
}

fn slices(bytes: Bytes) -> BoxStream<'static, io::Result<Bytes>> {
    let next =
        |mut rest: Bytes| (!rest.is_empty()).then(|| (Ok(rest.split_to(rest.len().min(CHUNK_BYTES))), rest));
    stream::iter(std::iter::successors(next(bytes), move |(_, rest)| next(rest.clone())))
        .map(|(chunk, _)| chunk)
        .boxed()
}

async fn read(path: &Path) -> io::Result<OpenBody> {
    let file = File::open(path).await?;
    let length = file.metadata().await?.len();
    // A file that grows must not send more than the length that was announced.
    let chunks = ReaderStream::with_capacity(file.take(length), CHUNK_BYTES).boxed();
    Ok(OpenBody { length, chunks })
}
