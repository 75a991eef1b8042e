//! The file that the runs are kept in: a [`redb`] database, written by a thread of its own. What comes while one
//! transaction is made durable goes into the next, so that many changes share one sync of the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, backends::FileBackend};
use tokio::{sync::watch, time::timeout};
use tracing::error;

use super::core::{Change, Stored};
use crate::queue::{Unavailable, record::Record};

/// Records by the place of their run.
const RUNS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("runs");

/// Payloads of runs that have not ended.
const PAYLOADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("payloads");

/// Outputs of runs that have.
const OUTPUTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outputs");

/// Numbers about the file itself.
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");

/// The version of what the tables hold; another one is refused.
const FORMAT: u64 = 1;

/// Memory for pages of the file. Everything is in memory already, so that little is read.
const CACHE_BYTES: usize = 16 << 20;

/// A file beyond this gives back to the disk at the start what is not used in it.
const COMPACT_BYTES: u64 = 64 << 20;

/// How long whoever needs something durable waits for it before being told that it cannot be had.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long after a write that failed the next is tried.
const AGAIN: Duration = Duration::from_secs(1);

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another process has it.
    #[error("another orchestrator uses it; stop that one, or give this one a folder of its own")]
    InUse,
    /// It was written by another version.
    #[error(
        "its format is {0}, and this version reads {FORMAT}; use the version that wrote it, or move it away"
    )]
    Format(u64),
    /// A record in it cannot be read.
    #[error("a record in it cannot be read; use the version that wrote it, or move it away")]
    Record(#[from] rmp_serde::decode::Error),
    /// It cannot be read or written.
    #[error("it cannot be read or written")]
    Io(#[from] io::Error),
    /// It is damaged, or no such file.
    #[error("it is damaged or no file of runs; move it away to begin anew")]
    Storage(#[source] Box<redb::Error>),
}

impl From<redb::Error> for JournalError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse,
            redb::Error::Io(error) => Self::Io(error),
            error => Self::Storage(Box::new(error)),
        }
    }
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Pending {
    changes: Vec<Change>,
    /// The number of the last write that was asked for.
    written: u64,
    /// The last try to write did not succeed.
    failing: bool,
    closing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Condvar,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file, and the thread that writes it. Dropping it lets the thread write what waits, and end.
#[derive(Debug)]
pub(super) struct Journal {
    shared: Arc<Shared>,
    /// The number of the last write that is durable; closed when the file is.
    durable: watch::Receiver<u64>,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.pending().closing = true;
        self.shared.wake.notify_one();
    }
}

impl Journal {
    /// Opens the file, or makes it, and reads what is in it. It blocks.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<Stored>), JournalError> {
        let mut database = open(path)?;
        if fs::metadata(path)?.len() > COMPACT_BYTES {
            database.compact().map_err(redb::Error::from)?;
        }
        let decode = |(place, record, payload, output): Row| {
            Ok::<_, JournalError>(Stored { place, record: Record::decode(&record)?, payload, output })
        };
        let stored = read(&database)?.into_iter().map(decode).collect::<Result<_, _>>()?;
        Ok((Self::start(database, path)?, stored))
    }

    fn start(database: Database, path: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, durable) = watch::channel(0);
        let writer = Writer { path: path.to_owned(), shared: Arc::clone(&shared), durable: sender };
        thread::Builder::new().name("queue-file".to_owned()).spawn(move || writer.run(database))?;
        Ok(Self { shared, durable })
    }

    /// Has changes written after those before, and returns the number by which to wait for them.
    pub(super) fn write(&self, mut changes: Vec<Change>) -> u64 {
        let mut pending = self.shared.pending();
        if !changes.is_empty() {
            pending.changes.append(&mut changes);
            pending.written += 1;
            self.shared.wake.notify_one();
        }
        pending.written
    }

    /// The number of the last write that was asked for.
    pub(super) fn written(&self) -> u64 {
        self.shared.pending().written
    }

    /// Waits until a write is durable, for ten seconds at most.
    pub(super) async fn durable(&self, written: u64) -> Result<(), Unavailable> {
        let mut durable = self.durable.clone();
        match timeout(PATIENCE, durable.wait_for(|&done| done >= written)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Unavailable),
        }
    }

    /// Whether the last try to write succeeded, and there will be more.
    pub(super) fn can_write(&self) -> bool {
        !self.shared.pending().failing && self.durable.has_changed().is_ok()
    }

    /// Writes what waits, and lets go of the file.
    pub(super) async fn close(&self) {
        self.shared.pending().closing = true;
        self.shared.wake.notify_one();
        let mut durable = self.durable.clone();
        while durable.changed().await.is_ok() {}
    }
}

struct Writer {
    path: PathBuf,
    shared: Arc<Shared>,
    durable: watch::Sender<u64>,
}

impl Writer {
    fn run(self, database: Database) {
        let mut database = Some(database);
        while let Some((changes, upto)) = self.next() {
            while let Err(error) = self.write(&mut database, &changes) {
                error!(path = %self.path.display(), %error, "runs cannot be stored; trying again");
                self.shared.pending().failing = true;
                if self.pause() {
                    return;
                }
            }
            self.shared.pending().failing = false;
            self.durable.send_replace(upto);
        }
        // The file is free before those who wait for its end hear of it.
        drop(database);
    }

    /// Waits for changes; `None`: there are none and will be none.
    fn next(&self) -> Option<(Vec<Change>, u64)> {
        let mut pending = self.shared.pending();
        while pending.changes.is_empty() && !pending.closing {
            pending = self.shared.wake.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        let changes = std::mem::take(&mut pending.changes);
        (!changes.is_empty()).then_some((changes, pending.written))
    }

    /// Waits a while; true: the process wants to end.
    fn pause(&self) -> bool {
        let (pending, _) = self
            .shared
            .wake
            .wait_timeout_while(self.shared.pending(), AGAIN, |pending| !pending.closing)
            .unwrap_or_else(PoisonError::into_inner);
        pending.closing
    }

    /// Writes changes in one transaction. After a failure the file is opened anew.
    fn write(&self, database: &mut Option<Database>, changes: &[Change]) -> Result<(), JournalError> {
        let open = match database.take() {
            Some(open) => open,
            None => open(&self.path)?,
        };
        write(&open, changes)?;
        *database = Some(open);
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, JournalError> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    // It holds payloads and the tokens of files: nobody else may read it.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let database = in_file(options.open(path)?)?;
    match format_of(&database)? {
        FORMAT => Ok(database),
        other => Err(JournalError::Format(other)),
    }
}

fn in_file(file: fs::File) -> Result<Database, redb::Error> {
    let backend = FileBackend::new(file)?;
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)?)
}

/// The version of a file's format. A new one gets this version's, and its tables.
fn format_of(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    let mut about = transaction.open_table(ABOUT)?;
    if let Some(format) = about.get("format")? {
        return Ok(format.value());
    }
    about.insert("format", FORMAT)?;
    drop(about);
    for table in [RUNS, PAYLOADS, OUTPUTS] {
        transaction.open_table(table)?;
    }
    transaction.commit()?;
    Ok(FORMAT)
}

/// A record with what is kept beside it.
type Row = (u64, Vec<u8>, Bytes, Bytes);

fn read(database: &Database) -> Result<Vec<Row>, redb::Error> {
    let transaction = database.begin_read()?;
    let payloads = transaction.open_table(PAYLOADS)?;
    let outputs = transaction.open_table(OUTPUTS)?;
    let bytes = |found: Option<redb::AccessGuard<'_, &[u8]>>| {
        found.map_or_else(Bytes::new, |found| Bytes::copy_from_slice(found.value()))
    };
    let mut rows = Vec::new();
    for run in transaction.open_table(RUNS)?.iter()? {
        let (place, record) = run?;
        let place = place.value();
        let record = record.value().to_owned();
        rows.push((place, record, bytes(payloads.get(place)?), bytes(outputs.get(place)?)));
    }
    Ok(rows)
}

fn write(database: &Database, changes: &[Change]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut runs = transaction.open_table(RUNS)?;
        let mut payloads = transaction.open_table(PAYLOADS)?;
        let mut outputs = transaction.open_table(OUTPUTS)?;
        for change in changes {
            match change {
                Change::Taken { place, record, payload } => {
                    runs.insert(place, record.as_slice())?;
                    payloads.insert(place, payload.as_ref())?;
                }
                Change::Moved { place, record } => drop(runs.insert(place, record.as_slice())?),
                Change::Ended { place, record, output } => {
                    runs.insert(place, record.as_slice())?;
                    payloads.remove(place)?;
                    outputs.insert(place, output.as_ref())?;
                }
                Change::Forgotten { place } => {
                    runs.remove(place)?;
                    outputs.remove(place)?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use redb::{StorageBackend, backends::InMemoryBackend};

    use super::*;

    /// A disk that may be full.
    #[derive(Debug, Default)]
    struct Disk {
        bytes: InMemoryBackend,
        is_full: Arc<AtomicBool>,
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            self.bytes.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.bytes.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.bytes.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            match self.is_full.load(Ordering::Relaxed) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => self.bytes.write(offset, data),
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_known_until_it_can() {
        let disk = Disk::default();
        let is_full = Arc::clone(&disk.is_full);
        let database = Database::builder().create_with_backend(disk).unwrap();
        format_of(&database).unwrap();
        // What it opens then.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later").join("runs.redb");
        let journal = Journal::start(database, &path).unwrap();
        let written = journal.write(vec![Change::Forgotten { place: 1 }]);
        journal.durable(written).await.unwrap();
        assert!(journal.can_write());
        is_full.store(true, Ordering::Relaxed);
        let written = journal.write(vec![Change::Forgotten { place: 2 }]);
        let known = timeout(PATIENCE, async {
            while journal.can_write() {
                tokio::task::yield_now().await;
            }
        });
        known.await.unwrap();
        fs::create_dir(path.parent().unwrap()).unwrap();
        journal.durable(written).await.unwrap();
        assert!(journal.can_write());
    }
}
