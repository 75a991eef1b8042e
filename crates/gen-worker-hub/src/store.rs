//! Models on disk: each file once, each model a directory that is absent or complete.
//!
//! ```text
//! <cache>/objects/<algorithm>/<hex>     a verified file, which the models that have it link to
//! <cache>/models/<key>/                 a model's files, and .complete.json, written last
//! <cache>/models/<key>.building/        a model under way; what it links to is not fetched again
//! <cache>/models/<key>.lock             held by the process that builds, removes or mends
//! <cache>/models/<key>.pin              shared by those who use it; its time is when it was last asked for
//! <cache>/refs/<key>.json               where a reference led, and when
//! <cache>/partial/<key>.{part,json,lock}  a file under way
//! <cache>/quarantine/<key>.<unique>/    a model that was found damaged
//! ```
//!
//! A model's link and its object are one file. An object that has no other name is in no model.

mod evict;
mod lock;
mod marker;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gen_worker_core::{Algorithm, Digest, LocalModel, ModelRef};
use serde::{Deserialize, Serialize};

use self::marker::{MARKER, examine};
pub(crate) use self::{
    evict::{Claim, Room},
    lock::Lock,
    marker::{MarkedFile, Marker, Verdict},
};
use crate::{
    fetch::Fetched,
    part::PartPlace,
    snapshot::{FilePath, RemoteFile},
};

/// The model cache.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    /// Most bytes it may take; `None`: any number.
    limit: Option<u64>,
}

/// One model's place in the cache, whether or not it is there.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    home: PathBuf,
    building: PathBuf,
    lock: PathBuf,
    pin: PathBuf,
}

/// Where a reference led.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Led {
    /// The reference, as it may be shown.
    pub(crate) written: String,
    /// To which model.
    pub(crate) key: String,
    /// When, in Unix seconds; `None`: for good.
    pub(crate) asked: Option<u64>,
    /// Whether files that can run code were allowed then.
    #[serde(default)]
    pub(crate) pickles: bool,
}

impl Store {
    pub(crate) fn new(root: &Path, limit: Option<u64>) -> Self {
        Self { root: root.to_owned(), limit }
    }

    /// The place of a model.
    pub(crate) fn entry(&self, key: &str) -> Entry {
        let models = self.root.join("models");
        Entry {
            key: key.to_owned(),
            home: models.join(key),
            building: models.join(format!("{key}.building")),
            lock: models.join(format!("{key}.lock")),
            pin: models.join(format!("{key}.pin")),
        }
    }

    /// Where a file of this content is kept.
    pub(crate) fn object(&self, digest: Digest) -> PathBuf {
        self.root.join("objects").join(digest.algorithm().name()).join(digest.hex())
    }

    /// Where a file is while it comes: by its content, so that all who want it share it, or by its place in a model.
    pub(crate) fn part(&self, key: &str, file: &RemoteFile) -> PartPlace {
        let name = match file.promise.digest {
            Some(digest) => format!("{}-{}", digest.algorithm().name(), digest.hex()),
            None => Digest::of(Algorithm::Sha256, format!("{key}\n{}", file.path).as_bytes()).hex(),
        };
        let at = |extension: &str| self.root.join("partial").join(format!("{name}.{extension}"));
        PartPlace { part: at("part"), state: at("json"), lock: at("lock") }
    }

    /// Makes the directories. Blocks.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        for name in ["objects/sha256", "objects/blake3", "models", "refs", "partial"] {
            fs::create_dir_all(self.root.join(name))?;
        }
        Ok(())
    }

    /// Keeps a file that came, and returns its place. Blocks.
    pub(crate) fn keep(&self, place: &PartPlace, file: &Fetched) -> io::Result<PathBuf> {
        let object = self.object(file.digest);
        fs::rename(&file.path, &object)?;
        sync_directory(object.parent())?;
        place.forget()?;
        Ok(object)
    }

    /// Where this reference led. Blocks.
    pub(crate) fn recall(&self, model: &ModelRef) -> Option<Led> {
        serde_json::from_slice(&fs::read(self.reference(model.canonical())).ok()?).ok()
    }

    /// Writes down where this reference led. Blocks.
    pub(crate) fn remember(&self, model: &ModelRef, led: &Led) -> io::Result<()> {
        let path = self.reference(model.canonical());
        let fresh = path.with_extension(uuid::Uuid::new_v4().simple().to_string());
        fs::write(&fresh, serde_json::to_vec(led)?)?;
        fs::rename(fresh, path)
    }

    /// The references whose models are there, as they were written, with the models' keys. Blocks.
    pub(crate) fn scan(&self) -> Vec<(String, String)> {
        let led = |path: PathBuf| serde_json::from_slice::<Led>(&fs::read(path).ok()?).ok();
        let there = |led: &Led| matches!(self.entry(&led.key).look(), Verdict::Whole(_));
        let all = list(&self.root.join("refs")).filter_map(led).filter(there);
        all.map(|led| (led.written, led.key)).collect()
    }

    fn reference(&self, canonical: &str) -> PathBuf {
        let key = Digest::of(Algorithm::Sha256, canonical.as_bytes()).hex();
        self.root.join("refs").join(format!("{key}.json"))
    }
}

impl Entry {
    /// The model, if it is there and complete; it stays while it is used. Blocks.
    pub(crate) fn open(&self, model: &ModelRef) -> Option<LocalModel> {
        if !self.home.exists() {
            return None;
        }
        let pin = self.pin().ok()?;
        match self.look() {
            Verdict::Whole(marker) => Some(self.local(model, &marker, pin)),
            Verdict::Absent | Verdict::Damaged(_) => None,
        }
    }

    /// What is there. Blocks.
    pub(crate) fn look(&self) -> Verdict {
        examine(&self.home)
    }

    /// The digests of the files that are not there in their sizes. Blocks.
    pub(crate) fn damaged_in_size(&self, marker: &Marker) -> impl Iterator<Item = Digest> {
        let damaged = |file: &&MarkedFile| !marker::is_present(&self.home, file);
        marker.files.iter().filter(damaged).filter_map(|file| file.digest.parse().ok())
    }

    /// Where a file of the model is.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }

    /// Where those who build, remove or mend the model keep others out.
    pub(crate) fn lock_path(&self) -> &Path {
        &self.lock
    }

    /// Waits until no other process builds this model.
    pub(crate) async fn lock(&self) -> io::Result<Lock> {
        Lock::wait(&self.lock).await
    }

    /// Makes the place where the model is built. Blocks.
    pub(crate) fn build(&self) -> io::Result<()> {
        fs::create_dir_all(&self.building)
    }

    /// Gives a kept file its name in the model. Blocks.
    pub(crate) fn adopt(&self, path: &FilePath, object: &Path) -> io::Result<()> {
        let name = self.building.join(path.as_str());
        fs::create_dir_all(name.parent().unwrap_or(&self.building))?;
        match fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match fs::hard_link(object, &name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
            // A file system without links: the model has a copy of its own.
            Err(_) => fs::copy(object, &name).and_then(|_| File::open(&name)?.sync_all()),
            Ok(()) => Ok(()),
        }
    }

    /// Shows what was built as the model, in place of what was there. Blocks.
    pub(crate) fn publish(&self, model: &ModelRef, marker: &Marker) -> io::Result<LocalModel> {
        let pin = self.pin()?;
        self.only(marker)?;
        let path = self.building.join(MARKER);
        fs::write(&path, serde_json::to_vec_pretty(marker)?)?;
        File::open(&path)?.sync_all()?;
        for directory in directories(&self.building) {
            sync_directory(Some(&directory))?;
        }
        // What is there by now lacks its marker, or it would have been opened or quarantined.
        if self.home.exists() {
            fs::remove_dir_all(&self.home)?;
        }
        fs::rename(&self.building, &self.home)?;
        sync_directory(self.home.parent())?;
        Ok(self.local(model, marker, pin))
    }

    /// Removes what an earlier attempt built and this one does not want.
    fn only(&self, marker: &Marker) -> io::Result<()> {
        for directory in directories(&self.building) {
            for path in list(&directory).filter(|path| !path.is_dir()) {
                let name = path.strip_prefix(&self.building).map_err(io::Error::other)?;
                if !marker.files.iter().any(|file| Path::new(&file.path) == name) {
                    fs::remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Shares the model with others who use it, and says that it was asked for.
    fn pin(&self) -> io::Result<Lock> {
        let pin = Lock::share(&self.pin)?.ok_or(io::ErrorKind::WouldBlock)?;
        pin.stamp()?;
        Ok(pin)
    }

    fn local(&self, model: &ModelRef, marker: &Marker, pin: Lock) -> LocalModel {
        let files = marker.files.iter();
        LocalModel {
            model: model.clone(),
            root: self.home.clone(),
            size_bytes: marker.size_bytes(),
            files: files.map(|file| (file.path.clone(), self.home.join(&file.path))).collect(),
            pin: Some(Arc::new(pin)),
        }
    }
}

/// What a directory holds; nothing if it cannot be read.
fn list(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// A directory and all below it.
fn directories(root: &Path) -> Vec<PathBuf> {
    let mut all = vec![root.to_owned()];
    let mut next = 0;
    while next < all.len() {
        let below: Vec<_> = list(&all[next]).filter(|path| path.is_dir() && !path.is_symlink()).collect();
        all.extend(below);
        next += 1;
    }
    all
}

/// Makes the names in a directory last.
fn sync_directory(directory: Option<&Path>) -> io::Result<()> {
    directory.map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests;
