//! Stream → temporary file beside the target → size and digest check → rename.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest, Hasher};
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::error::NetError;

/// How many bytes are gathered before a thread is asked to write them.
const BATCH_BYTES: usize = 1 << 20;

/// What a file must be before it is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected {
    /// Its size in bytes; `None`: any.
    pub size_bytes: Option<u64>,
    /// Its digest; `None`: any. SHA-256, or the algorithm that the sink was opened with.
    pub digest: Option<Digest>,
}

/// A file that was checked and put in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// Its SHA-256.
    pub sha256: Digest,
}

/// A file in the making. It is hashed as it arrives, on a thread that may block. Dropped unfinished it leaves nothing,
/// except one that was opened to be resumed, which stays.
#[derive(Debug)]
pub struct FileSink {
    /// Absent while a thread has it, and after a write that failed or was given up.
    partial: Option<Partial>,
    batch: Vec<Bytes>,
    batch_bytes: usize,
    written: u64,
}

impl FileSink {
    /// Starts a file beside `target`; its directory must exist.
    ///
    /// # Errors
    /// The file cannot be made.
    pub async fn beside(target: &Path) -> Result<Self, NetError> {
        let path = target.with_file_name(format!(".{}.part", Uuid::new_v4().simple()));
        let open = move || Partial::open(path, false, Algorithm::Sha256);
        Ok(Self::new(blocking(open).await?))
    }

    /// Opens `path` to be continued, or starts it, and keeps it when dropped. What is there is hashed. `algorithm` is
    /// that of the digest to expect.
    ///
    /// # Errors
    /// The file cannot be read or made.
    pub async fn resume(path: PathBuf, algorithm: Algorithm) -> Result<Self, NetError> {
        let open = move || Partial::open(path, true, algorithm);
        Ok(Self::new(blocking(open).await?))
    }

    /// How many bytes the file has so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// They cannot be written; the sink is then of no more use.
    ///
    /// # Cancel safety
    /// Dropping the future makes the sink useless: dropping it too is all that can be done.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), NetError> {
        self.written += chunk.len() as u64;
        self.batch_bytes += chunk.len();
        self.batch.push(chunk);
        if self.batch_bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Starts over with an empty file.
    ///
    /// # Errors
    /// The file cannot be emptied.
    pub async fn restart(&mut self) -> Result<(), NetError> {
        self.batch.clear();
        (self.batch_bytes, self.written) = (0, 0);
        self.with_partial(Partial::restart).await
    }

    /// Writes what is gathered, so that the file can be resumed from here.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn flush(&mut self) -> Result<(), NetError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        self.with_partial(move |partial| batch.iter().try_for_each(|chunk| partial.write(chunk))).await
    }

    /// Checks the file, makes it durable and shows it as `target`, in place of what was there.
    ///
    /// # Errors
    /// Its size or digest is not what was expected, and it is gone; or it cannot be put in place.
    pub async fn finish(mut self, target: &Path, expected: Expected) -> Result<StoredFile, NetError> {
        self.flush().await?;
        let partial = self.partial.take().ok_or_else(lost)?;
        let (target, size_bytes) = (target.to_owned(), self.written);
        blocking(move || partial.publish(target, size_bytes, expected)).await
    }

    fn new(partial: Partial) -> Self {
        Self { written: partial.found, partial: Some(partial), batch: Vec::new(), batch_bytes: 0 }
    }

    async fn with_partial(
        &mut self,
        work: impl FnOnce(&mut Partial) -> io::Result<()> + Send + 'static,
    ) -> Result<(), NetError> {
        let mut partial = self.partial.take().ok_or_else(lost)?;
        let partial = blocking(move || work(&mut partial).map(|()| partial).map_err(Into::into)).await?;
        self.partial = Some(partial);
        Ok(())
    }
}

/// The open file and its name, of which one thread at a time has charge.
#[derive(Debug)]
struct Partial {
    file: File,
    place: Place,
    found: u64,
    sha256: Hasher,
    other: Option<Hasher>,
}

impl Partial {
    fn open(path: PathBuf, keep: bool, algorithm: Algorithm) -> Result<Self, NetError> {
        let file = File::options().read(true).append(true).create(true).open(&path)?;
        let mut partial = Self {
            file,
            place: Place { path, keep },
            found: 0,
            sha256: Hasher::new(Algorithm::Sha256),
            other: (algorithm != Algorithm::Sha256).then(|| Hasher::new(algorithm)),
        };
        partial.hash_found()?;
        Ok(partial)
    }

    fn hash_found(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; BATCH_BYTES];
        loop {
            let read = self.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            self.found += read as u64;
            self.hash(&buffer[..read]);
        }
    }

    fn hash(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(other) = &mut self.other {
            other.update(bytes);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash(bytes);
        Ok(())
    }

    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.sha256 = Hasher::new(Algorithm::Sha256);
        let empty = |other: &Hasher| Hasher::new(other.clone().finish().algorithm());
        self.other = self.other.as_ref().map(empty);
        Ok(())
    }

    fn publish(self, target: PathBuf, size_bytes: u64, expected: Expected) -> Result<StoredFile, NetError> {
        let Self { file, mut place, sha256, other, .. } = self;
        let sha256 = sha256.finish();
        // What fails its check is no start to resume from.
        let keep = std::mem::take(&mut place.keep);
        check(size_bytes, &[Some(sha256), other.map(Hasher::finish)], expected)?;
        place.keep = keep;
        file.sync_all()?;
        fs::rename(&place.path, &target)?;
        sync_parent(&target)?;
        Ok(StoredFile { path: target, size_bytes, sha256 })
    }
}

fn check(size_bytes: u64, digests: &[Option<Digest>], expected: Expected) -> Result<(), NetError> {
    match expected.size_bytes {
        Some(expected) if expected != size_bytes => {
            return Err(NetError::Size { expected, actual: size_bytes });
        }
        Some(_) | None => {}
    }
    let Some(expected) = expected.digest else {
        return Ok(());
    };
    let computed = digests.iter().flatten().find(|digest| digest.algorithm() == expected.algorithm());
    let actual = *computed.expect("the sink was opened with the algorithm of the digest to expect");
    if actual == expected { Ok(()) } else { Err(NetError::DigestMismatch { expected, actual }) }
}

/// Makes a rename last.
fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// The name of a partial file, which goes with it unless it is kept.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    keep: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.keep {
            // It may never have been made; there is nothing to do about one that stays.
            let _ = fs::remove_file(&self.path);
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    spawn_blocking(work).await.map_err(|error| NetError::from(io::Error::other(error)))?
}

fn lost() -> NetError {
    NetError::from(io::Error::other("the sink was given up"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn sink(target: &Path, content: &[u8]) -> FileSink {
        let mut sink = FileSink::beside(target).await.unwrap();
        sink.write(Bytes::copy_from_slice(content)).await.unwrap();
        sink
    }

    #[tokio::test]
    async fn a_checked_file_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        let digest = Digest::of(Algorithm::Sha256, b"abc");
        let expected = Expected { size_bytes: Some(3), digest: Some(digest) };
        let stored = sink(&target, b"abc").await.finish(&target, expected).await.unwrap();
        assert_eq!((stored.size_bytes, stored.sha256), (3, digest));
        assert_eq!(fs::read(&target).unwrap(), b"abc");
        assert_eq!(names(directory.path()), ["a"]);
    }

    #[tokio::test]
    async fn a_wrong_or_unfinished_file_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a");
        let wrong_digest =
            Expected { size_bytes: None, digest: Some(Digest::of(Algorithm::Sha256, b"other")) };
        let wrong_size = Expected { size_bytes: Some(4), digest: None };
        for expected in [wrong_digest, wrong_size] {
            assert!(sink(&target, b"abc").await.finish(&target, expected).await.is_err());
        }
        drop(sink(&target, &[0; BATCH_BYTES]).await);
        assert!(names(directory.path()).is_empty());
    }

    #[tokio::test]
    async fn a_resumed_file_is_hashed_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("a.partial");
        fs::write(&partial, b"ab").unwrap();
        let mut sink = FileSink::resume(partial.clone(), Algorithm::Blake3).await.unwrap();
        assert_eq!(sink.written(), 2);
        sink.write(Bytes::from_static(b"c")).await.unwrap();
        sink.flush().await.unwrap();
        drop(sink);
        assert_eq!(fs::read(&partial).unwrap(), b"abc");

        let sink = FileSink::resume(partial.clone(), Algorithm::Blake3).await.unwrap();
        let expected = Expected { size_bytes: Some(3), digest: Some(Digest::of(Algorithm::Blake3, b"abc")) };
        let target = directory.path().join("a");
        let stored = sink.finish(&target, expected).await.unwrap();
        assert_eq!(stored.sha256, Digest::of(Algorithm::Sha256, b"abc"));
        assert!(!partial.exists());
    }

    #[tokio::test]
    async fn a_restarted_file_forgets_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let partial = directory.path().join("a.partial");
        fs::write(&partial, b"old").unwrap();
        let mut sink = FileSink::resume(partial, Algorithm::Blake3).await.unwrap();
        sink.restart().await.unwrap();
        sink.write(Bytes::from_static(b"new!")).await.unwrap();
        let expected = Expected { size_bytes: Some(4), digest: Some(Digest::of(Algorithm::Blake3, b"new!")) };
        let target = directory.path().join("a");
        sink.finish(&target, expected).await.unwrap();
        assert_eq!(fs::read(target).unwrap(), b"new!");
    }
}
