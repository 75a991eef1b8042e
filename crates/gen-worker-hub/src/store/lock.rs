//! A lock between processes that ends with the process that holds it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How often a process looks whether another has let go.
const INTERVAL: Duration = Duration::from_millis(200);

/// Held while it is alive.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Waits until nobody else holds it. Those who hold it move bytes or fail within their own bounds.
    pub(crate) async fn wait(path: &Path) -> io::Result<Self> {
        loop {
            if let Some(lock) = Self::take(path)? {
                return Ok(lock);
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Takes it unless somebody else holds it.
    pub(crate) fn take(path: &Path) -> io::Result<Option<Self>> {
        Self::by(path, File::try_lock)
    }

    /// Shares it with others who share it, unless somebody holds it alone.
    pub(crate) fn share(path: &Path) -> io::Result<Option<Self>> {
        Self::by(path, File::try_lock_shared)
    }

    /// Says on the lock's file that this is the time.
    pub(crate) fn stamp(&self) -> io::Result<()> {
        self.file.set_modified(SystemTime::now())
    }

    fn by(path: &Path, lock: impl Fn(&File) -> Result<(), TryLockError>) -> io::Result<Option<Self>> {
        loop {
            let file = File::options().create(true).append(true).open(path)?;
            match lock(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // Whoever held it before may have removed it: then this file locks nothing any more.
            let named = fs::metadata(path).map(|found| found.ino());
            if named.is_ok_and(|named| file.metadata().is_ok_and(|own| own.ino() == named)) {
                return Ok(Some(Self { path: path.to_owned(), file }));
            }
        }
    }

    /// Lets go and leaves no file.
    pub(crate) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        drop(self.file);
        Ok(())
    }
}
