//! The file that a token lies in, read again when it changes.

use std::{
    fs::{self, File, Metadata},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use gen_worker_core::{Secret, read_token};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::error::AuthError;

/// How long one reading may take, so that a file system that hangs does not keep the worker from dialling.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What of a file changes when it is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// A token and what the file was when it was read; `None`: the file is as it was.
type Reading = io::Result<Option<(Secret<String>, Version)>>;

#[derive(Debug)]
pub(crate) struct TokenFile {
    path: Arc<PathBuf>,
    taken: Option<Version>,
    /// A reading that took too long and goes on: nothing can stop it, and a second would hang where it does.
    reading: Option<JoinHandle<Reading>>,
}

impl TokenFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path: Arc::new(path), taken: None, reading: None }
    }

    /// The token, unless the file is as it was when one was taken from it.
    pub(crate) async fn read_if_changed(&mut self) -> Result<Option<(Secret<String>, Version)>, AuthError> {
        self.read_in_time().await.map_err(|source| AuthError::File { source })
    }

    async fn read_in_time(&mut self) -> Reading {
        let (path, taken) = (self.path.clone(), self.taken);
        let reading = self.reading.get_or_insert_with(|| spawn_blocking(move || read(&path, taken)));
        let Ok(ended) = timeout(READ_TIMEOUT, reading).await else {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "reading it takes too long"));
        };
        self.reading = None;
        ended.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
    }

    /// The token of this version is in use: it need not be read again.
    pub(crate) fn taken(&mut self, version: Version) {
        self.taken = Some(version);
    }
}

/// The version is taken first: a file that changes meanwhile looks changed the next time.
fn read(path: &Path, taken: Option<Version>) -> Reading {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"));
    }
    let version = Version::of(&metadata);
    if taken == Some(version) {
        return Ok(None);
    }
    Ok(Some((read_token(File::open(path)?)?, version)))
}

impl Version {
    fn of(metadata: &Metadata) -> Self {
        Self { modified: metadata.modified().ok(), length: metadata.len(), inode: inode(metadata) }
    }
}

#[cfg(unix)]
fn inode(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_metadata: &Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(read: Reading) -> Option<String> {
        read.unwrap().map(|(token, _)| token.expose().clone())
    }

    #[test]
    fn a_file_is_read_until_its_token_is_taken_and_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, " one\n").unwrap();
        let (_, version) = read(&path, None).unwrap().unwrap();
        assert_eq!(token(read(&path, None)).as_deref(), Some("one"));
        assert_eq!(token(read(&path, Some(version))), None);
        fs::write(&path, "longer").unwrap();
        assert_eq!(token(read(&path, Some(version))).as_deref(), Some("longer"));
    }

    #[test]
    fn a_file_put_in_its_place_is_a_change_also_at_the_same_size_and_time() {
        let directory = tempfile::tempdir().unwrap();
        let (path, next) = (directory.path().join("token"), directory.path().join("next"));
        fs::write(&path, "one").unwrap();
        fs::write(&next, "two").unwrap();
        let (_, version) = read(&path, None).unwrap().unwrap();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        File::options().write(true).open(&next).unwrap().set_modified(modified).unwrap();
        fs::rename(&next, &path).unwrap();
        assert_eq!(token(read(&path, Some(version))).as_deref(), Some("two"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_hangs_is_waited_for_again_and_not_begun_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "one").unwrap();
        let mut file = TokenFile::new(path.clone());
        let (release, hangs) = tokio::sync::oneshot::channel::<()>();
        let late = async move {
            let _ = hangs.await;
            read(&path, None)
        };
        file.reading = Some(tokio::runtime::Handle::current().spawn(late));
        for _ in 0..2 {
            let hung = file.read_if_changed().await.unwrap_err();
            assert!(matches!(hung, AuthError::File { source } if source.kind() == io::ErrorKind::TimedOut));
        }
        drop(release);
        assert_eq!(token(Ok(file.read_if_changed().await.unwrap())).as_deref(), Some("one"));
    }

    #[test]
    fn what_holds_no_token_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let problem = |path: &Path| read(path, None).unwrap_err().to_string();
        assert!(problem(&path).contains("No such file"));
        assert_eq!(problem(directory.path()), "it is no regular file");
        fs::write(&path, " \n").unwrap();
        assert_eq!(problem(&path), "it is empty");
    }
}
