//! What has to go: models when room is needed, leftovers when they are old, what is damaged at once.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use gen_worker_core::Digest;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    Entry, Store, directories, list,
    lock::Lock,
    marker::{MARKER, Marker, Verdict},
};
use crate::{
    error::HubError,
    room::{self, allocated},
};

/// How old a leftover must be before it is swept: as long as a download may reasonably be resumed.
const LEFTOVER_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What was removed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Swept {
    /// The keys of models that are gone.
    pub(crate) models: Vec<String>,
    /// How many bytes the files had that no other model has.
    pub(crate) bytes: u64,
}

/// Makes room for what is about to come, and remembers what had to go for it. Clones share what they remember.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    store: Store,
    gone: Arc<Mutex<Vec<String>>>,
    /// What each model that comes was given and has not taken yet.
    claims: Arc<Mutex<Vec<Weak<AtomicU64>>>>,
}

/// Room for a model that comes, which no other is given while this is alive.
#[derive(Debug)]
pub(crate) struct Claim {
    room: Room,
    left: Arc<AtomicU64>,
}

impl Room {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, gone: Arc::default(), claims: Arc::default() }
    }

    /// Makes room for this many bytes more, beside what others were given. Blocks.
    pub(crate) fn claim(&self, need: u64) -> Result<Claim, HubError> {
        // Held all the while: two who come at once would count on the same room.
        let mut claims = self.claims();
        self.make(need, &claims)?;
        let left = Arc::new(AtomicU64::new(need));
        claims.retain(|claim| claim.strong_count() > 0);
        claims.push(Arc::downgrade(&left));
        Ok(Claim { room: self.clone(), left })
    }

    fn make(&self, need: u64, claims: &[Weak<AtomicU64>]) -> Result<(), HubError> {
        let given = claims.iter().filter_map(Weak::upgrade).map(|left| left.load(Ordering::Relaxed));
        // Who needs nothing is not in the way of others.
        let need = if need == 0 { 0 } else { need.saturating_add(given.sum()) };
        let mut swept = Swept::default();
        let made = self.store.make_room_and_tell(need, &mut swept);
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).extend(swept.models);
        made
    }

    /// The keys of the models that had to go since the last call.
    pub(crate) fn take_gone(&self) -> Vec<String> {
        std::mem::take(&mut *self.gone.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn claims(&self) -> MutexGuard<'_, Vec<Weak<AtomicU64>>> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Makes room for a file that was not counted. It is to be taken at once. Blocks.
    pub(crate) fn grow(&self, bytes: u64) -> Result<(), HubError> {
        self.room.make(bytes, &self.room.claims())
    }

    /// So much of it was taken: the disk counts it from here on.
    pub(crate) fn took(&self, bytes: u64) {
        let rest = |left: u64| Some(left.saturating_sub(bytes));
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    }
}

impl Store {
    /// Makes room for this many bytes more, on the disk and under the limit. Models that nobody uses go, those first that
    /// nobody asked for for longest. Blocks.
    pub(crate) fn make_room(&self, need: u64) -> Result<Swept, HubError> {
        let mut swept = Swept::default();
        self.make_room_and_tell(need, &mut swept)?;
        Ok(swept)
    }

    /// The same; `swept` has what went, also if that is not enough.
    fn make_room_and_tell(&self, need: u64, swept: &mut Swept) -> Result<(), HubError> {
        if let Some(limit) = self.limit.filter(|limit| need > *limit) {
            return Err(HubError::OverLimit { need, have: limit });
        }
        let used = self.used();
        let over = self.limit.map_or(0, |limit| (used + need).saturating_sub(limit));
        let short = room::shortfall(&self.root, need)?;
        let goal = over.max(short);
        for entry in self.oldest_first() {
            if swept.bytes >= goal {
                break;
            }
            self.evict(&entry, swept)?;
        }
        if swept.bytes < over {
            let limit = self.limit.unwrap_or_default();
            return Err(HubError::OverLimit { need, have: limit.saturating_sub(used - swept.bytes) });
        }
        room::check(&self.root.join("models"), need)
    }

    /// Removes leftovers that are old, and says how many bytes they had. Blocks.
    pub(crate) fn sweep(&self, now: SystemTime) -> io::Result<u64> {
        Ok(self.sweep_leftovers(now)? + self.sweep_objects(now))
    }

    /// Sets a model aside, whose files are not what they were, with the files that its models would share.
    pub(crate) fn quarantine(&self, entry: &Entry, damaged: &[Digest]) -> io::Result<()> {
        let aside = self.root.join("quarantine");
        fs::create_dir_all(&aside)?;
        fs::rename(&entry.home, aside.join(format!("{}.{}", entry.key, Uuid::new_v4().simple())))?;
        for digest in damaged {
            remove_file(&self.object(*digest))?;
        }
        warn!(key = entry.key, "a model on disk is damaged; it is set aside");
        Ok(())
    }

    /// How many bytes the cache takes.
    pub(crate) fn used(&self) -> u64 {
        let objects = ["sha256", "blake3"].map(|name| self.root.join("objects").join(name));
        let files = objects.iter().flat_map(|directory| list(directory));
        let files = files.chain(list(&self.root.join("partial"))).map(|path| allocated(&path));
        files.chain(self.oldest_first().iter().map(|entry| own_bytes(&entry.home))).sum()
    }

    /// The models that are there. Those that were asked for last come last.
    pub(crate) fn oldest_first(&self) -> Vec<Entry> {
        let keys = list(&self.root.join("models")).filter(|path| path.extension().is_none());
        let entries = keys.filter_map(|path| Some(self.entry(path.file_name()?.to_str()?)));
        let mut all: Vec<_> = entries.map(|entry| (entry.last_used(), entry)).collect();
        all.sort_by(|(a, one), (b, other)| a.cmp(b).then_with(|| one.key.cmp(&other.key)));
        all.into_iter().map(|(_, entry)| entry).collect()
    }

    /// Removes a model that nobody uses or builds.
    fn evict(&self, entry: &Entry, swept: &mut Swept) -> io::Result<()> {
        let Some(lock) = Lock::take(&entry.lock)? else { return Ok(()) };
        let Some(pin) = Lock::take(&entry.pin)? else { return lock.remove() };
        let marker = match entry.look() {
            Verdict::Whole(marker) | Verdict::Damaged(marker) => marker,
            Verdict::Absent => return Ok(()),
        };
        // Once it has no name it is no model, however far the removal comes.
        let gone = entry.home.with_extension(format!("{}.gone", Uuid::new_v4().simple()));
        fs::rename(&entry.home, &gone)?;
        let own = own_bytes(&gone);
        fs::remove_dir_all(&gone)?;
        swept.bytes += own + self.drop_objects(&marker)?;
        swept.models.push(entry.key.clone());
        info!(model = marker.written, bytes = marker.size_bytes(), "model evicted");
        pin.remove()?;
        lock.remove()
    }

    /// Removes the files of a model that is gone, unless another has them.
    fn drop_objects(&self, marker: &Marker) -> io::Result<u64> {
        let mut bytes = 0;
        for digest in marker.digests() {
            let object = self.object(digest);
            if let Some(found) = fs::metadata(&object).ok().filter(|found| found.nlink() == 1) {
                remove_file(&object)?;
                bytes += found.len();
            }
        }
        Ok(bytes)
    }

    fn sweep_leftovers(&self, now: SystemTime) -> io::Result<u64> {
        let mut bytes = 0;
        for path in list(&self.root.join("partial")).filter(|path| has_extension(path, "part")) {
            let lock = path.with_extension("lock");
            if is_old(&path, now)
                && let Some(lock) = Lock::take(&lock)?
            {
                bytes += allocated(&path);
                remove_file(&path.with_extension("json"))?;
                remove_file(&path)?;
                lock.remove()?;
            }
        }
        for path in list(&self.root.join("models")).filter(|path| is_old(path, now)) {
            let abandoned = has_extension(&path, "building") || has_extension(&path, "gone");
            // Held until it is gone: whoever comes for it meanwhile builds in its place.
            if abandoned && let Some(lock) = Lock::take(&path.with_extension("lock"))? {
                fs::remove_dir_all(&path)?;
                lock.remove()?;
            }
        }
        for path in list(&self.root.join("quarantine")).filter(|path| is_old(path, now)) {
            fs::remove_dir_all(&path)?;
        }
        Ok(bytes)
    }

    /// Removes files that no model has and that are not about to be had.
    fn sweep_objects(&self, now: SystemTime) -> u64 {
        let objects = ["sha256", "blake3"].map(|name| self.root.join("objects").join(name));
        let alone = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.nlink() == 1);
        let old = objects.iter().flat_map(|directory| list(directory)).filter(|path| is_old(path, now));
        let gone = |path: PathBuf| {
            let bytes = allocated(&path);
            fs::remove_file(path).map_or(0, |()| bytes)
        };
        old.filter(alone).map(gone).sum()
    }
}

impl Entry {
    /// When it was last asked for.
    pub(crate) fn last_used(&self) -> Option<SystemTime> {
        let asked = fs::metadata(&self.pin).or_else(|_| fs::metadata(&self.home));
        asked.and_then(|found| found.modified()).ok()
    }

    /// Whether somebody uses it now, here or in another process.
    pub(crate) fn is_used(&self) -> bool {
        // Who misses the model because its pin is held here waits for this lock, and looks again.
        match Lock::take(&self.lock) {
            Ok(Some(lock)) => {
                let used = matches!(Lock::take(&self.pin), Ok(None));
                // One that cannot be removed is in nobody's way.
                let _ = lock.remove();
                used
            }
            Ok(None) => true,
            Err(_) => false,
        }
    }
}

/// How many bytes a model's directory takes beside the files that it shares: what was made of them and is kept there, such as
/// graphs that were optimised, and copies where there are no links.
fn own_bytes(home: &Path) -> u64 {
    let paths = directories(home).into_iter().flat_map(|directory| list(&directory));
    let files = paths.filter_map(|path| Some((fs::symlink_metadata(&path).ok()?, path)));
    let own = files.filter(|(found, path)| found.is_file() && found.nlink() == 1 && !path.ends_with(MARKER));
    own.map(|(_, path)| allocated(&path)).sum()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

fn is_old(path: &Path, now: SystemTime) -> bool {
    let age = fs::metadata(path).and_then(|found| found.modified()).map(|then| now.duration_since(then));
    age.is_ok_and(|age| age.is_ok_and(|age| age >= LEFTOVER_AGE))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
