//! Models on disk: a directory for each, published at once and complete.
//!
//! ```text
//! <cache>/refs/<key>/                   the model's files, and .complete.json, written last
//! <cache>/refs/<key>.partial/           a download under way, kept to be resumed
//! <cache>/refs/<key>.lock               held by the process that downloads
//! ```

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use gen_worker_core::{Algorithm, Digest, LocalModel, ModelRef};
use gen_worker_net::StoredFile;
use serde::{Deserialize, Serialize};

const MARKER: &str = ".complete.json";
/// How often a process looks whether another has finished with a model.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// The model cache.
#[derive(Debug)]
pub(crate) struct Store {
    refs: PathBuf,
}

/// One model's place in the cache, whether or not it is there.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    home: PathBuf,
    /// Where a download works.
    pub(crate) work: PathBuf,
    lock: PathBuf,
}

/// Says that a directory is complete, and of what.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    #[serde(rename = "ref")]
    written: String,
    canonical: String,
    files: Vec<MarkedFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MarkedFile {
    path: String,
    size_bytes: u64,
    sha256: String,
}

impl Store {
    pub(crate) fn new(cache: &Path) -> Self {
        Self { refs: cache.join("refs") }
    }

    /// The place of a model.
    pub(crate) fn entry(&self, model: &ModelRef) -> Entry {
        let key = Digest::of(Algorithm::Sha256, model.canonical().as_bytes()).hex();
        Entry {
            home: self.refs.join(&key),
            work: self.refs.join(format!("{key}.partial")),
            lock: self.refs.join(format!("{key}.lock")),
        }
    }

    /// The models that are there, as they were written. Blocks.
    pub(crate) fn scan(&self) -> Vec<String> {
        let Ok(homes) = fs::read_dir(&self.refs) else {
            return Vec::new();
        };
        homes.filter_map(|home| complete(&home.ok()?.path())).map(|marker| marker.written).collect()
    }
}

impl Entry {
    /// The model, if it is there and complete. Blocks.
    pub(crate) fn load(&self, model: &ModelRef) -> Option<LocalModel> {
        let marker = complete(&self.home)?;
        (marker.canonical == model.canonical()).then(|| self.local(model, &marker))
    }

    /// Waits until no other process downloads this model; the file returned keeps others out while it is open.
    pub(crate) async fn lock(&self) -> io::Result<File> {
        if let Some(refs) = self.lock.parent() {
            tokio::fs::create_dir_all(refs).await?;
        }
        let file = File::options().create(true).append(true).open(&self.lock)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_INTERVAL).await,
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Shows the work directory, which holds just this file, as the model. Blocks.
    pub(crate) fn publish(&self, model: &ModelRef, file: &StoredFile) -> io::Result<LocalModel> {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let marker = Marker {
            written: model.known_as().to_owned(),
            canonical: model.canonical().to_owned(),
            files: vec![MarkedFile {
                path: name.into_owned(),
                size_bytes: file.size_bytes,
                sha256: file.sha256.hex(),
            }],
        };
        let marker_path = self.work.join(MARKER);
        fs::write(&marker_path, serde_json::to_vec_pretty(&marker)?)?;
        File::open(&marker_path)?.sync_all()?;
        File::open(&self.work)?.sync_all()?;
        // What is there by now lacks its marker or a file, or it would have been loaded.
        if self.home.exists() {
            fs::remove_dir_all(&self.home)?;
        }
        fs::rename(&self.work, &self.home)?;
        if let Some(refs) = self.home.parent() {
            File::open(refs)?.sync_all()?;
        }
        Ok(self.local(model, &marker))
    }

    fn local(&self, model: &ModelRef, marker: &Marker) -> LocalModel {
        let files = marker.files.iter();
        LocalModel {
            model: model.clone(),
            root: self.home.clone(),
            size_bytes: files.clone().map(|file| file.size_bytes).sum(),
            pin: None,
            files: files.map(|file| (file.path.clone(), self.home.join(&file.path))).collect(),
        }
    }
}

/// The marker of a directory whose files are all there, in their sizes.
fn complete(home: &Path) -> Option<Marker> {
    // A work directory may have its marker and not yet its name.
    if home.extension().is_some() {
        return None;
    }
    let marker: Marker = serde_json::from_slice(&fs::read(home.join(MARKER)).ok()?).ok()?;
    let present = |file: &MarkedFile| {
        let found = fs::metadata(home.join(&file.path));
        found.is_ok_and(|found| found.len() == file.size_bytes)
    };
    marker.files.iter().all(present).then_some(marker)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &str) -> ModelRef {
        ModelRef::parse(text).unwrap()
    }

    async fn published(store: &Store, written: &str) -> Entry {
        let entry = store.entry(&model(written));
        let _lock = entry.lock().await.unwrap();
        fs::create_dir_all(&entry.work).unwrap();
        let path = entry.work.join("m.onnx");
        fs::write(&path, b"abc").unwrap();
        let file = StoredFile { path, size_bytes: 3, sha256: Digest::of(Algorithm::Sha256, b"abc") };
        entry.publish(&model(written), &file).unwrap();
        entry
    }

    #[tokio::test]
    async fn a_published_model_is_found_under_each_spelling() {
        let cache = tempfile::tempdir().unwrap();
        let store = Store::new(cache.path());
        published(&store, "org/repo").await;
        let other = model("cozy:org/repo:latest");
        let local = store.entry(&other).load(&other).unwrap();
        assert_eq!((local.size_bytes, local.model.as_str()), (3, "cozy:org/repo:latest"));
        assert_eq!(fs::read(&local.files["m.onnx"]).unwrap(), b"abc");
        assert_eq!(store.scan(), ["org/repo"]);
    }

    #[tokio::test]
    async fn a_directory_that_lacks_something_is_no_model() {
        let cache = tempfile::tempdir().unwrap();
        let store = Store::new(cache.path());
        for lost in ["m.onnx", MARKER] {
            let entry = published(&store, "org/repo").await;
            fs::write(entry.home.join(lost), b"").unwrap();
            assert!(entry.load(&model("org/repo")).is_none(), "{lost}");
            assert!(store.scan().is_empty());
        }
        // Publishing again takes the broken one's place.
        let entry = published(&store, "org/repo").await;
        assert!(entry.load(&model("org/repo")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_download_keeps_others_out() {
        let cache = tempfile::tempdir().unwrap();
        let entry = Store::new(cache.path()).entry(&model("org/repo"));
        let held = entry.lock().await.unwrap();
        let minute = Duration::from_secs(60);
        assert!(tokio::time::timeout(minute, entry.lock()).await.is_err());
        drop(held);
        tokio::time::timeout(minute, entry.lock()).await.unwrap().unwrap();
    }
}
