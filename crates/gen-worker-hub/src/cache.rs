//! The model cache, as a person looks at it and mends it.

use std::{fs, io, path::Path, time::SystemTime};

use gen_worker_core::{ByteLimit, Digest, Hasher};

use crate::{
    error::HubError,
    store::{Entry, Lock, Marker, Store, Verdict},
};

/// How much of a file is read at once.
const BLOCK_BYTES: usize = 1 << 20;

/// The models on this machine, whoever fetched them. Its functions block, and may be used beside workers.
#[derive(Debug)]
pub struct Cache {
    store: Store,
}

/// A model on this machine.
#[derive(Debug, Clone)]
pub struct CachedModel {
    /// The reference that it was first fetched for, without query.
    pub reference: String,
    /// What names its content at its source; `None`: the source has no name for it.
    pub revision: Option<String>,
    /// How many files it has.
    pub files: usize,
    /// The sum of their sizes in bytes. Models may share files.
    pub size_bytes: u64,
    /// When it was last asked for; `None`: the file system does not say.
    pub last_used: Option<SystemTime>,
    /// Whether a process uses it now.
    pub in_use: bool,
}

/// What was found wrong with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The reference that it was first fetched for, without query.
    pub reference: String,
    /// The paths of its files that are missing or not what they were.
    pub damaged: Vec<String>,
}

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Freed {
    /// How many models.
    pub models: usize,
    /// How many bytes, leftovers of downloads included.
    pub bytes: u64,
}

impl Cache {
    /// The cache in this directory, which need not be there yet; `limit` is for [`gc`](Self::gc).
    pub fn new(directory: &Path, limit: ByteLimit) -> Self {
        Self { store: Store::new(directory, limit.max()) }
    }

    /// The models, those that were asked for last first. A damaged one is not among them.
    pub fn list(&self) -> Vec<CachedModel> {
        let entries = self.store.oldest_first().into_iter().rev();
        let model = |entry: Entry| match entry.look() {
            Verdict::Whole(marker) => Some(CachedModel {
                files: marker.files.len(),
                size_bytes: marker.size_bytes(),
                last_used: entry.last_used(),
                in_use: entry.is_used(),
                reference: marker.written,
                revision: marker.revision,
            }),
            Verdict::Absent | Verdict::Damaged(_) => None,
        };
        entries.filter_map(model).collect()
    }

    /// How many bytes the cache takes on disk, with downloads under way.
    pub fn used(&self) -> u64 {
        self.store.used()
    }

    /// Reads every file of every model and compares it with its digest. A damaged model is set aside, so that whoever
    /// wants it next fetches what is missing of it.
    ///
    /// # Errors
    /// A file can be neither read nor set aside.
    pub fn verify(&self) -> Result<Vec<Mended>, HubError> {
        let mut mended = Vec::new();
        for entry in self.store.oldest_first() {
            if let Some(found) = self.verify_one(&entry)? {
                mended.push(found);
            }
        }
        Ok(mended)
    }

    /// Removes leftovers of downloads that nobody took up for a week, and models until the limit holds: those that were
    /// not asked for for longest, and none that is in use.
    ///
    /// # Errors
    /// A file cannot be removed, or models in use exceed the limit.
    pub fn gc(&self) -> Result<Freed, HubError> {
        let mut bytes = self.store.sweep(SystemTime::now())?;
        let swept = self.store.make_room(0)?;
        bytes += swept.bytes;
        Ok(Freed { models: swept.models.len(), bytes })
    }

    fn verify_one(&self, entry: &Entry) -> Result<Option<Mended>, HubError> {
        // One that is being built, or removed, is nobody's yet.
        let Some(lock) = Lock::take(entry.lock_path())? else { return Ok(None) };
        let (Verdict::Whole(marker) | Verdict::Damaged(marker)) = entry.look() else { return Ok(None) };
        let damaged = damaged(entry, &marker);
        if !damaged.is_empty() {
            let digests: Vec<_> = damaged.iter().filter_map(|(_, digest)| *digest).collect();
            self.store.quarantine(entry, &digests)?;
        }
        lock.remove()?;
        let damaged: Vec<_> = damaged.into_iter().map(|(path, _)| path).collect();
        Ok((!damaged.is_empty()).then_some(Mended { reference: marker.written, damaged }))
    }
}

/// The files that are not what they were, with the digests they should have.
fn damaged(entry: &Entry, marker: &Marker) -> Vec<(String, Option<Digest>)> {
    let expected = marker.files.iter().map(|file| (file, file.digest.parse::<Digest>().ok()));
    let wrong = expected.filter(|(file, digest)| {
        let actual = digest.map(|digest| digest_of(&entry.file(&file.path), digest));
        !matches!((actual, digest), (Some(Ok(actual)), Some(digest)) if actual == *digest)
    });
    wrong.map(|(file, digest)| (file.path.clone(), digest)).collect()
}

/// The digest of a file, made as `like` was.
fn digest_of(path: &Path, like: Digest) -> io::Result<Digest> {
    let (mut file, mut hasher) = (fs::File::open(path)?, Hasher::new(like.algorithm()));
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match io::Read::read(&mut file, &mut block)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&block[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gen_worker_core::{ModelRef, ports::ModelSource, testing::RecordedEvents};

    use super::*;
    use crate::testing::{FileServer, hub};

    async fn fetched(cache: &Path, server: &FileServer) -> std::path::PathBuf {
        let model = ModelRef::parse("org/m.onnx").unwrap();
        let local = hub(cache, server).ensure(&model, Arc::new(RecordedEvents::default())).await.unwrap();
        local.files["m.onnx"].clone()
    }

    #[tokio::test]
    async fn what_is_damaged_later_is_set_aside_and_fetched_once_more() {
        let directory = tempfile::tempdir().unwrap();
        let server = FileServer::start(b"content", &[]).await;
        let path = fetched(directory.path(), &server).await;
        let cache = Cache::new(directory.path(), ByteLimit::Unlimited);
        assert_eq!(cache.verify().unwrap(), []);
        // Of the same size, so that only its digest tells; and shorter, which whoever opens it sees.
        for (wrong, requests) in [("CONTENT", 2), ("con", 3)] {
            fs::write(&path, wrong).unwrap();
            let mended = Mended { reference: "org/m.onnx".to_owned(), damaged: vec!["m.onnx".to_owned()] };
            if wrong == "CONTENT" {
                assert_eq!(cache.verify().unwrap(), [mended]);
            }
            assert!(cache.list().is_empty());
            assert_eq!(fs::read(fetched(directory.path(), &server).await).unwrap(), b"content");
            assert_eq!(server.paths().len(), requests);
        }
        assert_eq!(fs::read_dir(directory.path().join("quarantine")).unwrap().count(), 2);
        assert_eq!(cache.verify().unwrap(), []);
    }

    #[tokio::test]
    async fn the_list_says_what_is_there_and_gc_holds_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = Cache::new(&directory.path().join("none"), ByteLimit::Unlimited);
        assert_eq!((nothing.list().len(), nothing.used(), nothing.verify().unwrap()), (0, 0, vec![]));
        assert_eq!(nothing.gc().unwrap(), Freed::default());
        let server = FileServer::start(b"content", &[]).await;
        fetched(directory.path(), &server).await;
        let cache = Cache::new(directory.path(), ByteLimit::Max(gen_worker_core::ByteSize(3)));
        let [model] = &cache.list()[..] else { panic!("one model") };
        assert_eq!((model.reference.as_str(), model.files, model.size_bytes), ("org/m.onnx", 1, 7));
        assert!(model.last_used.is_some() && !model.in_use && cache.used() == 7);
        assert_eq!(cache.gc().unwrap(), Freed { models: 1, bytes: 7 });
        assert!(cache.list().is_empty());
    }
}
