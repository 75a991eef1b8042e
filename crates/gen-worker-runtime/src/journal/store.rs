//! The file: owned by one process, appended to, and written anew when most of it is about delivered results.

use std::{
    borrow::Cow,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use tracing::{error, warn};

use super::{
    Change, JournalError,
    live::Live,
    record::{self, Codec, Contents, HEADER},
};
use crate::{
    outbox::Key,
    wire::{Message, kept::delivered},
};

const JOURNAL: &str = "results.journal";
/// What could not be read, for a person to look at; the last such file.
const CORRUPT: &str = "results.journal.corrupt";
const NEW: &str = "results.journal.new";
const LOCK: &str = "lock";

/// Bytes about delivered results below which the file is left as it is.
const SLACK: u64 = 1 << 20;

/// The journal of one process.
pub(super) struct Store {
    directory: PathBuf,
    /// Held, never read: whoever has the lock has the directory.
    _lock: File,
    file: JournalFile,
    live: Live,
    /// Dead bytes beyond which the file is written anew.
    slack: u64,
}

/// A file with a header, and the records after it.
struct JournalFile {
    file: File,
    codec: Codec,
    /// Bytes in the file.
    len: u64,
}

impl Store {
    /// Takes the directory, and reads and writes anew what an earlier process left there.
    pub(super) fn open(directory: &Path) -> Result<Self, JournalError> {
        let unusable = |source| JournalError::Unusable { directory: directory.to_owned(), source };
        make(directory).map_err(unusable)?;
        let lock = private().create(true).truncate(false).open(directory.join(LOCK)).map_err(unusable)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::Taken { directory: directory.to_owned() },
            TryLockError::Error(source) => unusable(source),
        })?;
        let live = read(directory).map_err(unusable)?;
        let file = rewrite(directory, &live).map_err(unusable)?;
        Ok(Self { directory: directory.to_owned(), _lock: lock, file, live, slack: SLACK })
    }

    /// What an earlier process did not deliver, oldest first.
    pub(super) fn undelivered(&self) -> Vec<(Key, Message)> {
        self.live.in_order().into_iter().map(|(key, message)| (key.clone(), message.clone())).collect()
    }

    /// Appends, and returns once every result among the changes is on the disk. A change that cannot be written now still
    /// counts when the file is written anew.
    pub(super) fn write(&mut self, changes: Vec<Change>) -> io::Result<()> {
        let appended = self.append(&changes);
        for change in changes {
            match change {
                Change::Keep { key, message, .. } => self.live.put(key, message),
                Change::Forget(key) => self.live.remove(&key),
            }
        }
        appended
    }

    fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        let mut has_result = false;
        let messages = changes.iter().map(|change| match change {
            Change::Keep { message, .. } => {
                has_result = true;
                Cow::Borrowed(message)
            }
            Change::Forget(key) => Cow::Owned(delivered(&key.0, key.1)),
        });
        self.file.append(messages)?;
        // That a result is delivered may be forgotten: it is sent once more.
        if has_result { self.file.file.sync_data() } else { Ok(()) }
    }

    /// From now on nothing can be appended.
    #[cfg(all(test, target_os = "linux"))]
    pub(super) fn write_to_full_disk(&mut self) {
        self.file.file = private().open("/dev/full").expect("it is there");
    }

    /// Writes the file anew if more than half of it, and more than the slack, is dead.
    pub(super) fn compact(&mut self) {
        let dead = self.file.len.saturating_sub(self.live.bytes);
        if dead <= self.slack || dead * 2 <= self.file.len {
            return;
        }
        match rewrite(&self.directory, &self.live) {
            Ok(file) => (self.file, self.slack) = (file, SLACK),
            Err(error) => {
                error!(%error, "the result journal cannot be written anew and goes on growing");
                self.slack = dead * 2;
            }
        }
    }
}

impl JournalFile {
    fn create(path: &Path) -> io::Result<Self> {
        let (mut file, codec) = (private().create_new(true).open(path)?, Codec::fresh());
        file.write_all(&codec.header())?;
        Ok(Self { file, codec, len: HEADER as u64 })
    }

    /// Appends all of them, or nothing.
    fn append<'a>(&mut self, messages: impl Iterator<Item = Cow<'a, Message>>) -> io::Result<()> {
        let written = self.write(messages);
        match written {
            Ok(bytes) => self.len += bytes,
            // Half a record would be skipped by the next process, and said to be corrupt.
            Err(_) => drop(self.file.set_len(self.len)),
        }
        written.map(drop)
    }

    fn write<'a>(&self, messages: impl Iterator<Item = Cow<'a, Message>>) -> io::Result<u64> {
        let (mut file, mut bytes) = (BufWriter::new(&self.file), 0);
        for message in messages {
            let record = self.codec.encode(&message);
            file.write_all(&record)?;
            bytes += record.len() as u64;
        }
        file.flush()?;
        Ok(bytes)
    }
}

/// The results that an earlier process left, and a word about what cannot be read.
fn read(directory: &Path) -> io::Result<Live> {
    let journal = directory.join(JOURNAL);
    let contents = match fs::read(&journal) {
        Ok(bytes) => record::decode(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Contents::default(),
        Err(error) => return Err(error),
    };
    if contents.corrupt > 0 {
        fs::copy(journal, directory.join(CORRUPT))?;
        error!(
            bytes = contents.corrupt,
            copy = CORRUPT,
            "the result journal is corrupt: some results are lost"
        );
    }
    if contents.torn > 0 {
        warn!(bytes = contents.torn, "the last record of the result journal is torn: it was never sent");
    }
    Ok(Live::replay(contents.messages))
}

/// Puts a file with only these results in the place of the journal; a crash leaves the old one or the new one.
fn rewrite(directory: &Path, live: &Live) -> io::Result<JournalFile> {
    let (new, journal) = (directory.join(NEW), directory.join(JOURNAL));
    if let Err(error) = fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = JournalFile::create(&new)?;
    file.append(live.in_order().into_iter().map(|(_, message)| Cow::Borrowed(message)))?;
    file.file.sync_all()?;
    fs::rename(new, journal)?;
    // The rename itself; only Unix lets a directory be opened.
    #[cfg(unix)]
    File::open(directory)?.sync_all()?;
    Ok(file)
}

/// For the worker's user only: results are tenants' data.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn make(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}
