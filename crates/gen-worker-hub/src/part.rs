//! A file in the making: bytes at their places, and a small state file that says which of them are there.

use std::{
    cmp::Ordering,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest};
use gen_worker_net::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::{
    error::HubError,
    follow::Follower,
    plan::Spans,
    room::{self, allocated},
};

/// How much is written before the disk is made to take it, while more arrives: little is left to wait for at the end.
const SYNC_BYTES: u64 = 64 << 20;

/// Where a file in the making and its state are.
#[derive(Debug, Clone)]
pub(crate) struct PartPlace {
    pub(crate) part: PathBuf,
    pub(crate) state: PathBuf,
    /// Held by the one who writes.
    pub(crate) lock: PathBuf,
}

/// What was promised of a file, as far as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) size_bytes: Option<u64>,
    pub(crate) digest: Option<Digest>,
}

/// The state file. What it does not say is not there.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Saved {
    size_bytes: Option<u64>,
    digest: Option<String>,
    etag: Option<String>,
    /// First byte and the one after the last.
    spans: Vec<(u64, u64)>,
}

/// A write under way, and where it ends.
pub(crate) type Writing = JoinHandle<io::Result<u64>>;

#[derive(Debug)]
pub(crate) struct Part {
    place: PartPlace,
    inner: Mutex<Inner>,
    /// Held by the one who writes the state file.
    saving: Mutex<()>,
    /// Held by the one who syncs; how that failed. The system tells of a failure once only.
    syncing: Mutex<io::Result<()>>,
}

#[derive(Debug)]
struct Inner {
    file: Arc<File>,
    spans: Spans,
    promise: Promise,
    etag: Option<String>,
    follower: Option<Follower>,
    /// How many bytes the disk was not made to take yet.
    unsynced: u64,
}

impl PartPlace {
    /// How many bytes of room an earlier download holds that can be taken up. Blocks.
    pub(crate) fn held(&self, promise: Promise) -> u64 {
        self.usable(promise).map_or(0, |_| allocated(&self.part))
    }

    /// Throws away what there is. Its room is free at once, also if it is still being hashed. Blocks.
    pub(crate) fn forget(&self) -> io::Result<()> {
        remove(&self.state)?;
        if let Ok(part) = File::options().write(true).open(&self.part) {
            part.set_len(0)?;
        }
        remove(&self.part)
    }

    /// The state of an earlier download, if it can be taken up. Without a digest or a validator nothing would show that
    /// the rest belongs to another version.
    fn usable(&self, promise: Promise) -> Option<Saved> {
        let saved: Saved = serde_json::from_slice(&fs::read(&self.state).ok()?).ok()?;
        let length = fs::metadata(&self.part).ok()?.len();
        let same = promise.digest.is_none_or(|digest| saved.digest == Some(digest.to_string()))
            && promise.size_bytes.is_none_or(|size| saved.size_bytes == Some(size));
        let vouched = promise.digest.is_some() || saved.etag.is_some();
        let end = saved.spans().end();
        let whole = end <= length && saved.size_bytes.is_none_or(|size| end <= size);
        (same && vouched && whole).then_some(saved)
    }
}

impl Saved {
    fn spans(&self) -> Spans {
        self.spans.iter().map(|(start, end)| *start..*end).collect()
    }
}

impl Part {
    /// Takes up what an earlier download left, or starts anew, in a new file: a write of the old one that is still under
    /// way must not reach it. Blocks.
    pub(crate) fn open(place: PartPlace, promise: Promise) -> io::Result<Self> {
        let saved = place.usable(promise);
        if saved.is_none() {
            place.forget()?;
        }
        let saved = saved.unwrap_or_default();
        let promise = Promise {
            size_bytes: promise.size_bytes.or(saved.size_bytes),
            digest: promise.digest.or_else(|| saved.digest.as_ref()?.parse().ok()),
        };
        let file = Arc::new(open(&place)?);
        let inner =
            Inner { file, spans: saved.spans(), promise, etag: saved.etag, follower: None, unsynced: 0 };
        Ok(Self { place, inner: Mutex::new(inner), saving: Mutex::default(), syncing: Mutex::new(Ok(())) })
    }

    /// Starts over in a new file. Blocks.
    pub(crate) fn renew(&self) -> io::Result<()> {
        self.place.forget()?;
        let file = Arc::new(open(&self.place)?);
        let mut inner = self.inner();
        let promise = inner.promise;
        *inner = Inner { file, spans: Spans::default(), promise, etag: None, follower: None, unsynced: 0 };
        Ok(())
    }

    /// What a request for the rest is bound to.
    pub(crate) fn validator(&self) -> Option<HeaderValue> {
        self.inner().etag.as_ref().and_then(|etag| HeaderValue::try_from(etag).ok())
    }

    pub(crate) fn etag(&self) -> Option<String> {
        self.inner().etag.clone()
    }

    /// What is known of the whole file.
    pub(crate) fn promise(&self) -> Promise {
        self.inner().promise
    }

    pub(crate) fn present(&self) -> u64 {
        self.inner().spans.total()
    }

    /// The pieces that are missing; of a file of unknown size an endless number.
    pub(crate) fn missing(&self, most: u64, take: usize) -> Vec<Range<u64>> {
        let inner = self.inner();
        let size = inner.promise.size_bytes.unwrap_or(u64::MAX);
        inner.spans.missing(size, most).take(take).collect()
    }

    /// Takes what the first answer says, makes room for the file, and starts its digest. Blocks.
    pub(crate) fn begin(&self, promise: Promise, etag: Option<String>) -> Result<(), HubError> {
        if let Some(size) = promise.size_bytes {
            self.reserve(size)?;
        }
        let algorithm = promise.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let follower = Follower::start(self.file(), algorithm)?;
        let mut inner = self.inner();
        follower.advance(inner.spans.prefix(), None);
        (inner.promise, inner.etag, inner.follower) = (promise, etag, Some(follower));
        Ok(())
    }

    /// Begins to put bytes in their place; they are put there also if nobody waits for it.
    pub(crate) fn write(self: &Arc<Self>, at: u64, batch: Vec<Bytes>) -> Writing {
        let (part, file) = (Arc::clone(self), self.file());
        tokio::task::spawn_blocking(move || {
            let mut end = at;
            for bytes in &batch {
                file.write_all_at(bytes, end)?;
                end += bytes.len() as u64;
            }
            if part.wrote(at..end, batch) {
                tokio::task::spawn_blocking(move || part.sync());
            }
            Ok(end)
        })
    }

    /// Writes down what is there. What no digest will vouch for is on the disk before the state says so. Blocks.
    pub(crate) fn save(&self) -> io::Result<()> {
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = {
            let inner = self.inner();
            Saved {
                size_bytes: inner.promise.size_bytes,
                digest: inner.promise.digest.map(|digest| digest.to_string()),
                etag: inner.etag.clone(),
                spans: inner.spans.iter().map(|span| (span.start, span.end)).collect(),
            }
        };
        if saved.digest.is_none() {
            self.file().sync_data()?;
        }
        let fresh = self.place.state.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&saved)?)?;
        fs::rename(fresh, &self.place.state)
    }

    /// Makes the file durable and says how much of it came and what digest that has.
    pub(crate) async fn finish(self: &Arc<Self>) -> io::Result<(u64, Digest)> {
        let (follower, came) = {
            let mut inner = self.inner();
            (inner.follower.take(), inner.spans.prefix())
        };
        let follower = follower.ok_or_else(|| io::Error::other("the file was finished before"))?;
        let part = Arc::clone(self);
        let synced = tokio::task::spawn_blocking(move || {
            let mut failed = part.syncing.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *failed, Ok(()))?;
            part.file().sync_all()
        });
        let digest = follower.finish().await?;
        synced.await.map_err(io::Error::other)??;
        Ok((came, digest))
    }

    /// Takes note of what is there, and says whether the disk should take it by now.
    fn wrote(&self, bytes: Range<u64>, batch: Vec<Bytes>) -> bool {
        let mut inner = self.inner();
        let follows = inner.spans.prefix() == bytes.start;
        inner.spans.add(bytes.clone());
        if let Some(follower) = &inner.follower {
            follower.advance(inner.spans.prefix(), follows.then_some((bytes.start, batch)));
        }
        inner.unsynced += bytes.end - bytes.start;
        let due = inner.unsynced >= SYNC_BYTES;
        if due {
            inner.unsynced = 0;
        }
        due
    }

    /// Makes the disk take what was written, unless it is about to. Blocks.
    fn sync(&self) {
        if let Ok(mut failed) = self.syncing.try_lock()
            && let Err(error) = self.file().sync_data()
        {
            *failed = Err(error);
        }
    }

    /// How many bytes a file of this size takes beyond what it has. Blocks.
    pub(crate) fn lacks(&self, size: u64) -> u64 {
        size.saturating_sub(allocated(&self.place.part))
    }

    /// Takes the room that the file needs, before its first byte comes.
    fn reserve(&self, size: u64) -> Result<(), HubError> {
        room::check(&self.place.part, self.lacks(size))?;
        let file = self.file();
        let made = match size.cmp(&file.metadata()?.len()) {
            Ordering::Greater => allocate(&file, size),
            Ordering::Less => file.set_len(size),
            Ordering::Equal => Ok(()),
        };
        Ok(made?)
    }

    fn file(&self) -> Arc<File> {
        Arc::clone(&self.inner().file)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(place: &PartPlace) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(&place.part)
}

/// Sets room aside where the file system can, and else just the length.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    use rustix::{fs::FallocateFlags, io::Errno};
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.set_len(size),
        other => other.map_err(io::Error::from),
    }
}

fn remove(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn part(directory: &tempfile::TempDir, content: &[u8]) -> Arc<Part> {
        let at = |name| directory.path().join(name);
        let place = PartPlace { part: at("part"), state: at("json"), lock: at("lock") };
        let part = Arc::new(Part::open(place, Promise::default()).unwrap());
        part.begin(Promise { size_bytes: Some(content.len() as u64), digest: None }, None).unwrap();
        let (front, back) = content.split_at(content.len() / 2);
        for (at, bytes) in [(front.len() as u64, back), (0, front)] {
            let end = part.write(at, vec![Bytes::copy_from_slice(bytes)]).await.unwrap().unwrap();
            assert_eq!(end, at + bytes.len() as u64);
        }
        part
    }

    #[tokio::test]
    async fn what_comes_in_any_order_is_hashed_in_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let content = b"first and then second";
        let finished = part(&directory, content).await.finish().await.unwrap();
        assert_eq!(finished, (21, Digest::of(Algorithm::Sha256, content)));
    }

    #[tokio::test]
    async fn a_disk_that_failed_to_take_what_came_before_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let part = part(&directory, b"abcd").await;
        *part.syncing.lock().unwrap() = Err(io::ErrorKind::StorageFull.into());
        assert_eq!(part.finish().await.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
