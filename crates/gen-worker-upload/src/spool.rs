//! Bodies that can be opened as often as it takes: a stream is put on disk first.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use gen_worker_core::{ByteLimit, ByteSize, ByteStream, JobFailure, OutputBody};
use tempfile::{NamedTempFile, TempPath};
use tokio::{fs::File, io::AsyncWriteExt, task::spawn_blocking};

use crate::error::UploadError;

/// Bytes that can be read again for each try.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Bytes(Bytes),
    File(PathBuf),
}

/// A body, and the file that holds it if it was a stream. The file is removed when this is dropped.
pub(crate) struct Spooled {
    pub(crate) body: Body,
    _file: Option<TempPath>,
}

impl Spooled {
    /// Puts a stream into a file in `directory`, and stops as soon as it is over the limit; other bodies are left alone.
    ///
    /// # Errors
    /// The stream's own; it is too large, was read before, or cannot be written.
    pub(crate) async fn of(
        body: &OutputBody,
        limit: ByteLimit,
        directory: &Path,
    ) -> Result<Self, JobFailure> {
        match body {
            OutputBody::Bytes(bytes) => Ok(Self { body: Body::Bytes(bytes.clone()), _file: None }),
            OutputBody::File(path) => Ok(Self { body: Body::File(path.clone()), _file: None }),
            OutputBody::Stream(stream) => {
                let file = write(stream, limit, directory).await?;
                Ok(Self { body: Body::File(file.to_path_buf()), _file: Some(file) })
            }
        }
    }
}

async fn write(stream: &ByteStream, limit: ByteLimit, directory: &Path) -> Result<TempPath, JobFailure> {
    let chunks = stream.take().ok_or(UploadError::StreamTaken)?;
    let (file, path) = create(directory.to_owned()).await.map_err(|source| UploadError::Spool { source })?;
    let (mut file, mut size) = (File::from_std(file), 0);
    let mut chunks = chunks.fuse();
    while let Some(chunk) = chunks.try_next().await? {
        size += chunk.len() as u64;
        if !limit.admits(size) {
            let max = ByteSize(limit.max().unwrap_or(u64::MAX));
            return Err(UploadError::TooLarge { size, max }.into());
        }
        file.write_all(&chunk).await.map_err(|source| UploadError::Spool { source })?;
    }
    file.flush().await.map_err(|source| UploadError::Spool { source })?;
    Ok(path)
}

/// A file that nobody else can read.
async fn create(directory: PathBuf) -> std::io::Result<(std::fs::File, TempPath)> {
    let create = move || {
        std::fs::create_dir_all(&directory)?;
        Ok(NamedTempFile::with_prefix_in(".spool-", directory)?.into_parts())
    };
    spawn_blocking(create).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use gen_worker_core::{FailureKind, WorkerError};

    use super::*;

    const MAX: ByteLimit = ByteLimit::Max(ByteSize(6));

    fn body(chunks: Vec<Result<Bytes, WorkerError>>) -> OutputBody {
        ByteStream::new(stream::iter(chunks)).into()
    }

    #[tokio::test]
    async fn a_stream_becomes_a_file_for_as_long_as_it_is_needed() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("not/there");
        let body = body(vec![Ok("abc".into()), Ok("".into()), Ok("def".into())]);
        let spooled = Spooled::of(&body, MAX, &below).await.unwrap();
        let Body::File(path) = &spooled.body else { panic!("a file") };
        assert_eq!(std::fs::read(path).unwrap(), b"abcdef");
        let again = Spooled::of(&body, MAX, &below).await.map(drop).unwrap_err();
        assert_eq!(again.kind, FailureKind::Internal);
        drop(spooled);
        assert_eq!(std::fs::read_dir(below).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_stream_that_fails_or_is_too_large_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let more = || panic!("it is read no further");
        let endless =
            stream::iter([Ok("abc".into()), Ok("defg".into())]).chain(stream::once(async move { more() }));
        let too_large = OutputBody::Stream(ByteStream::new(endless));
        let failed = body(vec![Ok("a".into()), Err(WorkerError::resource("no more room"))]);
        for (body, kind) in [(too_large, FailureKind::Validation), (failed, FailureKind::Resource)] {
            let failure = Spooled::of(&body, MAX, directory.path()).await.map(drop).unwrap_err();
            assert_eq!(failure.kind, kind);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
