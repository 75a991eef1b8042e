//! What has to be known of a body before its first byte is sent.

use std::{fs::File, io, io::Read, path::Path};

#[cfg(feature = "s3")]
use base64::{Engine, engine::general_purpose::STANDARD};
use gen_worker_core::{Algorithm, ByteLimit, ByteSize, Digest, Hasher};
#[cfg(feature = "s3")]
use tokio::{sync::mpsc, task::JoinHandle};

#[cfg(feature = "s3")]
use crate::multipart::{Part, PartPlan};
use crate::{error::UploadError, spool::Body};

/// How much is hashed at once.
const CHUNK_BYTES: usize = 256 << 10;
/// Parts that are measured before one of those in flight is done.
#[cfg(feature = "s3")]
const PARTS_AHEAD: usize = 2;
/// How much of the start is kept; more than any signature of a media type.
const HEAD_BYTES: usize = 32;

/// A body's measures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    /// Its size in bytes.
    pub(crate) size: u64,
    /// The SHA-256 over all of it.
    pub(crate) sha256: Digest,
    /// Its first bytes.
    pub(crate) head: Vec<u8>,
}

/// The size of a body that is within the limit, without reading it.
pub(crate) async fn size(body: &Body, limit: ByteLimit) -> Result<u64, UploadError> {
    let size = match body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::File(path) => {
            let path = path.clone();
            let found = tokio::task::spawn_blocking(move || regular_file_size(&path)).await;
            found.unwrap_or_else(|panic| Err(panic.into())).map_err(read_failed)?
        }
    };
    check_size(size, limit).map(|()| size)
}

/// A part whose checksum is known, so that it can be sent.
#[derive(Debug)]
#[cfg(feature = "s3")]
pub(crate) struct MeasuredPart {
    pub(crate) part: Part,
    /// The CRC-32C of its bytes, in base64, as S3 writes it.
    pub(crate) crc32c: String,
}

/// Measures each part in turn, a few ahead of their sending; then says the SHA-256 over all. Ends early, with a failure,
/// when a part cannot be read, and when nobody takes them any more.
#[cfg(feature = "s3")]
pub(crate) fn measure_parts(
    body: &Body,
    plan: PartPlan,
) -> (mpsc::Receiver<MeasuredPart>, JoinHandle<Result<Digest, UploadError>>) {
    let (give, take) = mpsc::channel(PARTS_AHEAD);
    let body = body.clone();
    let measuring = tokio::task::spawn_blocking(move || match body {
        Body::Bytes(bytes) => hash_parts(&bytes[..], plan, &give),
        Body::File(path) => hash_parts(File::open(path).map_err(read_failed)?, plan, &give),
    });
    (take, measuring)
}

#[cfg(feature = "s3")]
fn hash_parts(
    mut source: impl Read,
    plan: PartPlan,
    give: &mpsc::Sender<MeasuredPart>,
) -> Result<Digest, UploadError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut chunk = vec![0; CHUNK_BYTES];
    for part in plan.parts() {
        let (mut left, mut crc32c) = ((part.range.end - part.range.start) as usize, 0);
        while left > 0 {
            let chunk = &mut chunk[..left.min(CHUNK_BYTES)];
            source.read_exact(chunk).map_err(read_failed)?;
            hasher.update(chunk);
            crc32c = crc32c::crc32c_append(crc32c, chunk);
            left -= chunk.len();
        }
        let measured = MeasuredPart { part, crc32c: STANDARD.encode(crc32c.to_be_bytes()) };
        give.blocking_send(measured).map_err(|_| read_failed(io::ErrorKind::Interrupted.into()))?;
    }
    Ok(hasher.finish())
}

/// Measures a body that is within the limit, on a thread where reading and hashing keep nobody waiting.
pub(crate) async fn measure(body: &Body, limit: ByteLimit) -> Result<Content, UploadError> {
    let body = body.clone();
    tokio::task::spawn_blocking(move || match body {
        Body::Bytes(bytes) => {
            check_size(bytes.len() as u64, limit)?;
            hash(&bytes[..])
        }
        Body::File(path) => hash(open(&path, limit)?),
    })
    .await
    .unwrap_or_else(|panic| Err(read_failed(panic.into())))
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
    let mut size = 0;
    loop {
        let read = match source.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => &chunk[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(read_failed(error)),
        };
        hasher.update(read);
        size += read.len() as u64;
        let missing = HEAD_BYTES - head.len();
        head.extend(read.iter().take(missing));
    }
    Ok(Content { size, sha256: hasher.finish(), head })
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
        assert_eq!(file.head, data[..HEAD_BYTES]);
        let bytes = measure(&Body::Bytes(data.into()), UNLIMITED).await.unwrap();
        assert_eq!(bytes, file);
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
