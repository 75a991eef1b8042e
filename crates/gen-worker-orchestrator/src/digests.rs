//! The SHA-256 of files, computed once for each version of each file.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use gen_worker_core::{Algorithm, Hasher};
use tokio::task::spawn_blocking;

/// Most files whose digest is remembered; all are forgotten together when there are more.
const MAX_FILES: usize = 100_000;

/// `None`: the file could not be read.
type Pending = Shared<BoxFuture<'static, Option<String>>>;

/// What tells one version of a file from another.
type Version = (u64, Option<SystemTime>);

/// The digests of files, shared by all who serve them.
#[derive(Debug, Default)]
pub(crate) struct Digests(Mutex<HashMap<PathBuf, (Version, Pending)>>);

impl Digests {
    /// The digest of a file as 64 hexadecimal digits; `None`: it cannot be read. Callers that ask at the same time wait
    /// for one computation, which goes on when they leave.
    pub(crate) async fn of(&self, path: &Path, metadata: &Metadata) -> Option<String> {
        let version = version(metadata);
        let pending = self.pending(path, version);
        let digest = pending.await;
        if digest.is_none() {
            self.files().remove(path);
        }
        digest
    }

    fn pending(&self, path: &Path, version: Version) -> Pending {
        let mut files = self.files();
        if let Some((known, pending)) = files.get(path)
            && *known == version
        {
            return pending.clone();
        }
        let to_read = path.to_owned();
        // Started here and not when first awaited: a caller that gives up does not stop it.
        let computation = spawn_blocking(move || hash(&to_read).ok());
        let pending = computation.map(|joined| joined.ok().flatten()).boxed().shared();
        insert(&mut files, path, version, pending.clone());
        pending
    }

    /// Publishes a new version of a file whose digest is known. No other version of any file is published meanwhile, so
    /// that the digest remembered is that of the file that stays.
    pub(crate) fn publish(
        &self,
        path: &Path,
        digest: &str,
        publish: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut files = self.files();
        publish()?;
        let version = version(&path.metadata()?);
        let known = std::future::ready(Some(digest.to_owned())).boxed().shared();
        insert(&mut files, path, version, known);
        Ok(())
    }

    fn files(&self) -> MutexGuard<'_, HashMap<PathBuf, (Version, Pending)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(files: &mut HashMap<PathBuf, (Version, Pending)>, path: &Path, version: Version, pending: Pending) {
    if files.len() >= MAX_FILES {
        files.clear();
    }
    files.insert(path.to_owned(), (version, pending));
}

fn version(metadata: &Metadata) -> Version {
    (metadata.len(), metadata.modified().ok())
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish().hex()),
            read => hasher.update(&buffer[..read]),
        }
    }
}
