//! What has to be known of a body before its first byte is sent.

use std::{fs::File, io, io::Read, path::Path};

use bytes::Bytes;
use gen_worker_core::{Algorithm, ByteLimit, ByteSize, Digest, Hasher};

#[cfg(feature = "s3")]
use crate::multipart::Part;
use crate::{error::UploadError, spool::Body};

/// How much is hashed at once.
const CHUNK_BYTES: usize = 256 << 10;
/// What is hashed in less than the 100 µs that a task may take between two waits, and than a thread often takes to wake.
const HASHED_AT_ONCE_BYTES: usize = 128 << 10;
/// How much of the start is kept; more than any signature of a media type.
const HEAD_BYTES: usize = 32;

/// A body's measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The SHA-256 over all of it.
    pub(crate) sha256: Digest,
    /// The CRC-32C over all of it; `None`: it is in memory, where nothing changes it.
    pub(crate) crc32c: Option<u32>,
    /// Its first bytes.
    pub(crate) head: Vec<u8>,
}

/// The size of a body that is within the limit, without reading it.
pub(crate) async fn size(body: &Body, limit: ByteLimit) -> Result<u64, UploadError> {
    let size = match body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::File(path) => {
            let path = path.clone();
            blocking(move || regular_file_size(&path).map_err(read_failed)).await?
        }
    };
    check_size(size, limit).map(|()| size)
}

/// A part whose checksum is known, so that it can be sent.
#[derive(Debug)]
#[cfg(feature = "s3")]
pub(crate) struct MeasuredPart {
    pub(crate) part: Part,
    /// The CRC-32C of its bytes.
    pub(crate) crc32c: u32,
}

/// Measures the parts of a body in their order, and with them the whole.
#[cfg(feature = "s3")]
pub(crate) struct PartMeter {
    source: Source,
    hasher: Hasher,
}

#[cfg(feature = "s3")]
enum Source {
    Bytes(Bytes),
    File(File),
}

#[cfg(feature = "s3")]
impl PartMeter {
    pub(crate) async fn new(body: &Body) -> Result<Self, UploadError> {
        let source = match body.clone() {
            Body::Bytes(bytes) => Source::Bytes(bytes),
            Body::File(path) => Source::File(blocking(move || File::open(path).map_err(read_failed)).await?),
        };
        Ok(Self { source, hasher: Hasher::new(Algorithm::Sha256) })
    }

    /// Measures the next part, on a thread where that keeps nobody waiting.
    pub(crate) async fn next(mut self, part: Part) -> Result<(Self, MeasuredPart), UploadError> {
        blocking(move || {
            let crc32c = self.measure(part.range.end - part.range.start).map_err(read_failed)?;
            Ok((self, MeasuredPart { part, crc32c }))
        })
        .await
    }

    /// The SHA-256 of all that was measured.
    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }

    fn measure(&mut self, length: u64) -> io::Result<u32> {
        let (hasher, mut crc32c) = (&mut self.hasher, 0);
        let mut take = |chunk: &[u8]| {
            hasher.update(chunk);
            crc32c = crc32c::crc32c_append(crc32c, chunk);
        };
        match &mut self.source {
            Source::Bytes(bytes) => bytes.split_to(length as usize).chunks(CHUNK_BYTES).for_each(take),
            Source::File(file) => {
                let (mut chunk, mut left) = (vec![0; CHUNK_BYTES], length);
                while left > 0 {
                    let chunk = &mut chunk[..left.min(CHUNK_BYTES as u64) as usize];
                    file.read_exact(chunk)?;
                    take(chunk);
                    left -= chunk.len() as u64;
                }
            }
        }
        Ok(crc32c)
    }
}

/// The SHA-256 of what is in memory: a little at once, more on a thread where it keeps nobody waiting.
pub(crate) async fn sha256(bytes: Bytes) -> Result<Digest, UploadError> {
    match bytes.len() {
        ..=HASHED_AT_ONCE_BYTES => Ok(Digest::of(Algorithm::Sha256, &bytes)),
        _ => blocking(move || Ok(Digest::of(Algorithm::Sha256, &bytes))).await,
    }
}

/// Measures a body that is within the limit.
pub(crate) async fn measure(body: &Body, limit: ByteLimit) -> Result<Content, UploadError> {
    match body.clone() {
        Body::Bytes(bytes) => {
            let size = bytes.len() as u64;
            check_size(size, limit)?;
            let head = bytes[..bytes.len().min(HEAD_BYTES)].to_owned();
            Ok(Content { size, sha256: sha256(bytes).await?, crc32c: None, head })
        }
        Body::File(path) => blocking(move || hash(open(&path, limit)?)).await,
    }
}

/// What reads and hashes files, on a thread where that keeps nobody waiting.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UploadError> + Send + 'static,
) -> Result<T, UploadError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(read_failed(panic.into())))
}

fn open(path: &Path, limit: ByteLimit) -> Result<impl Read, UploadError> {
    let size = regular_file_size(path).map_err(read_failed)?;
    check_size(size, limit)?;
    let file = File::open(path).map_err(read_failed)?;
    Ok(file.take(size))
}

/// Anything else than a file is refused before it is opened: opening a pipe waits for a writer.
fn regular_file_size(path: &Path) -> io::Result<u64> {
    let metadata = path.metadata()?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn check_size(size: u64, limit: ByteLimit) -> Result<(), UploadError> {
    match limit.max() {
        Some(max) if size > max => Err(UploadError::TooLarge { size, max: ByteSize(max) }),
        _ => Ok(()),
    }
}

fn hash(mut source: impl Read) -> Result<Content, UploadError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let mut chunk = vec![0; CHUNK_BYTES];
    let (mut size, mut crc32c) = (0, 0);
    loop {
        let read = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => &chunk[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_failed(error)),
        };
        hasher.update(read);
        crc32c = crc32c::crc32c_append(crc32c, read);
        size += read.len() as u64;
        let missing = HEAD_BYTES - head.len();
        head.extend(read.iter().take(missing));
    }
    Ok(Content { size, sha256: hasher.finish(), crc32c: Some(crc32c), head })
}

pub(crate) fn read_failed(source: io::Error) -> UploadError {
    UploadError::Read { source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNLIMITED: ByteLimit = ByteLimit::Unlimited;

    #[tokio::test]
    async fn bytes_and_a_file_measure_the_same() {
        let data: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|n| n as u8).collect();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        std::fs::write(&path, &data).unwrap();

        let file = measure(&Body::File(path), UNLIMITED).await.unwrap();
        assert_eq!(file.size, data.len() as u64);
        assert_eq!(file.sha256, Digest::of(Algorithm::Sha256, &data));
        assert_eq!(file.crc32c, Some(crc32c::crc32c(&data)));
        assert_eq!(file.head, data[..HEAD_BYTES]);
        let bytes = measure(&Body::Bytes(data.into()), UNLIMITED).await.unwrap();
        assert_eq!(bytes, Content { crc32c: None, ..file });
    }

    #[tokio::test]
    async fn the_limit_itself_is_within_the_limit() {
        let body = Body::Bytes("abc".into());
        assert!(measure(&body, ByteLimit::Max(ByteSize(3))).await.is_ok());
        let refused = measure(&body, ByteLimit::Max(ByteSize(2))).await;
        assert!(matches!(refused, Err(UploadError::TooLarge { size: 3, .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn only_a_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().to_owned(), directory.path().join("none")] {
            let refused = measure(&Body::File(path), UNLIMITED).await;
            assert!(matches!(refused, Err(UploadError::Read { .. })), "{refused:?}");
        }
    }
}
