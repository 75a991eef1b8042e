//! Files on disk: names that cannot leave their folder, and writes that are there whole or not at all.

use std::{
    fs, io,
    io::Write,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::StreamExt;
use gen_worker_core::{Algorithm, ByteLimit, Hasher};
use tempfile::NamedTempFile;
use tokio::{sync::mpsc, task::spawn_blocking};
use tracing::warn;

use crate::{digests::Digests, http_error::HttpError};

/// Longest reference, in bytes, and longest segment: what common file systems take.
const MAX_REFERENCE: usize = 1024;
const MAX_SEGMENT: usize = 200;

/// Where files are until they are whole, all in one place below the root. A dot in front: no reference names it.
const PARTS: &str = ".parts";

/// Chunks on their way to the disk.
const CHUNKS: usize = 8;

/// What to do when the file is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Replace,
    CreateOnly,
}

/// What was stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) size_bytes: u64,
    pub(crate) sha256: String,
}

/// A folder of files.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    max: ByteLimit,
    pub(crate) digests: Arc<Digests>,
}

/// A reference as a path below a folder; `None`: it is none, or could lead elsewhere.
pub(crate) fn relative(reference: &str) -> Option<PathBuf> {
    let fits = |segment: &str| {
        !segment.is_empty()
            && segment.len() <= MAX_SEGMENT
            && !segment.starts_with('.')
            && !segment.contains(|c: char| c.is_control() || c == '\\')
    };
    let path = PathBuf::from(reference);
    // A drive letter is no normal component.
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && reference.len() <= MAX_REFERENCE && reference.split('/').all(fits)).then_some(path)
}

impl Store {
    /// Uses `root`, which is created with the first file.
    pub(crate) fn new(root: PathBuf, max: ByteLimit, digests: Arc<Digests>) -> Self {
        Self { root, max, digests }
    }

    /// Removes what a process that was killed had not written to its end. For the one that has the folder, before it writes.
    pub(crate) fn sweep(&self) {
        match fs::remove_dir_all(self.root.join(PARTS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, root = %self.root.display(), "what was left of files could not be removed");
            }
            _ => {}
        }
    }

    /// Where the file of a reference is, whether it exists or not.
    pub(crate) fn path(&self, reference: &str) -> Result<PathBuf, HttpError> {
        let relative =
            relative(reference).ok_or_else(|| HttpError::usage("the reference is no plain path"))?;
        Ok(self.root.join(relative))
    }

    /// Writes a body as the file of a reference.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the file as it was.
    pub(crate) async fn write(&self, reference: &str, body: Body, mode: Mode) -> Result<Written, HttpError> {
        let path = self.path(reference)?;
        if mode == Mode::CreateOnly && path.exists() {
            return Err(taken());
        }
        let temporary =
            in_background(open_part(self.root.join(PARTS), path.clone())).await?.map_err(unusable)?;
        let written = self.receive(temporary.reopen().map_err(unusable)?, body).await?;
        let digests = Arc::clone(&self.digests);
        let sha256 = written.sha256.clone();
        let publish = move || {
            digests.publish(&path, &sha256, || match mode {
                Mode::Replace => temporary.persist(&path).map(drop).map_err(|e| e.error),
                Mode::CreateOnly => temporary.persist_noclobber(&path).map(drop).map_err(|e| e.error),
            })
        };
        match in_background(publish).await? {
            Ok(()) => Ok(written),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken()),
            Err(error) => Err(unusable(error)),
        }
    }

    /// Writes and hashes on a thread of its own while the body arrives.
    async fn receive(&self, file: fs::File, body: Body) -> Result<Written, HttpError> {
        let (chunks, queue) = mpsc::channel(CHUNKS);
        let writer = spawn_blocking(move || write_all(file, queue));
        let mut size_bytes = 0;
        let mut body = body.into_data_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|_| HttpError::usage("the content ended early"))?;
            size_bytes += chunk.len() as u64;
            if let Some(max) = self.max.max().filter(|&max| size_bytes > max) {
                return Err(HttpError::too_large(max));
            }
            // A writer that is gone tells why below.
            if chunks.send(chunk).await.is_err() {
                break;
            }
        }
        drop(chunks);
        let written = writer.await.map_err(|_| HttpError::internal())?;
        let sha256 = written.map_err(unusable)?;
        Ok(Written { size_bytes, sha256 })
    }
}

/// A file that becomes the one at `path`, whose folder is there then.
fn open_part(parts: PathBuf, path: PathBuf) -> impl FnOnce() -> io::Result<NamedTempFile> {
    move || {
        fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        fs::create_dir_all(&parts)?;
        NamedTempFile::new_in(parts)
    }
}

fn write_all(mut file: fs::File, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<String> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        file.write_all(&chunk)?;
    }
    Ok(hasher.finish().hex())
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, HttpError> {
    spawn_blocking(work).await.map_err(|_| HttpError::internal())
}

fn taken() -> HttpError {
    HttpError::conflict("there is a file already", "choose another name, or replace it with PUT")
}

fn unusable(error: io::Error) -> HttpError {
    warn!(%error, "a file could not be stored");
    HttpError::internal()
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use gen_worker_core::ByteSize;

    use super::*;

    fn store(root: &Path) -> Store {
        Store::new(root.join("files"), ByteLimit::Max(ByteSize(4)), Arc::default())
    }

    #[tokio::test]
    async fn what_a_killed_process_was_writing_goes_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let files = store(folder.path());
        files.write("kept", Body::from("abc"), Mode::Replace).await.unwrap();
        // As it is found after a SIGKILL.
        let part = open_part(files.root.join(PARTS), files.path("a/b").unwrap())().unwrap().keep().unwrap().1;
        assert!(part.exists());
        store(folder.path()).sweep();
        assert!(!part.exists() && files.path("kept").unwrap().exists());
        files.write("a/b", Body::from("abc"), Mode::Replace).await.unwrap();
        assert_eq!(fs::read(files.path("a/b").unwrap()).unwrap(), b"abc");
    }

    #[test]
    fn a_reference_stays_below_its_folder() {
        for bad in ["", "/a", "a//b", "../a", "a/..", "a/./b", ".hidden", "a\\b", "a\0"] {
            assert_eq!(relative(bad), None, "{bad}");
        }
        assert_eq!(relative(&"a".repeat(MAX_SEGMENT + 1)), None);
        assert_eq!(relative("runs/1/outputs/é x.png"), Some("runs/1/outputs/é x.png".into()));
    }

    #[tokio::test]
    async fn a_file_is_replaced_or_not_as_asked() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let first = store.write("a/b", Body::from("one"), Mode::CreateOnly).await.unwrap();
        assert_eq!(first.size_bytes, 3);
        let refused = store.write("a/b", Body::from("two"), Mode::CreateOnly).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::CONFLICT);
        store.write("a/b", Body::from("two"), Mode::Replace).await.unwrap();
        let path = store.path("a/b").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let digest = store.digests.of(&path, &path.metadata().unwrap()).await.unwrap();
        assert_eq!(digest, gen_worker_core::Digest::of(Algorithm::Sha256, b"two").hex());
    }

    #[tokio::test]
    async fn what_is_too_large_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let store = store(root.path());
        let refused = store.write("a/b", Body::from("12345"), Mode::Replace).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(fs::read_dir(root.path().join("files/a")).unwrap().count(), 0);
    }
}
