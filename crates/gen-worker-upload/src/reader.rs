//! A range of a file on its way to a connection: read on a thread, hashed on another, a few chunks ahead.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest, Hasher};
use tokio::{sync::mpsc, task::spawn_blocking};

/// How much is read, hashed and handed to the connection at once.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that wait between reading and hashing, and between hashing and the connection.
const CHUNKS_AHEAD: usize = 2;
/// What one transfer keeps in memory: the chunks that wait, one being read, one being hashed, and two that the connection
/// has not written.
pub(crate) const BUFFERED_BYTES: u64 = (CHUNK_BYTES * (2 * CHUNKS_AHEAD + 4)) as u64;

/// A range of a file, chunk by chunk.
pub(crate) struct Reader {
    file: File,
    left: u64,
    /// The CRC-32C of what was read.
    crc32c: u32,
    /// The one that all of it has to have, which was read before; `None`: it was not.
    measured: Option<u32>,
    spare: Arc<Spare>,
}

impl Reader {
    pub(crate) fn open(path: &Path, range: Range<u64>, measured: Option<u32>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(range.start))?;
        Ok(Self { file, left: range.end - range.start, crc32c: 0, measured, spare: Arc::default() })
    }

    fn chunk(&mut self) -> io::Result<Bytes> {
        let mut chunk = self.spare.lend(self.left.min(CHUNK_BYTES as u64) as usize);
        self.file.read_exact(&mut chunk.bytes)?;
        self.left -= chunk.bytes.len() as u64;
        self.check(&chunk.bytes)?;
        Ok(Bytes::from_owner(chunk))
    }

    /// What changed since it was measured has no end, so that nobody takes it for whole.
    fn check(&mut self, chunk: &[u8]) -> io::Result<()> {
        let Some(measured) = self.measured else { return Ok(()) };
        self.crc32c = crc32c::crc32c_append(self.crc32c, chunk);
        match self.left == 0 && self.crc32c != measured {
            true => Err(io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was sent")),
            false => Ok(()),
        }
    }
}

impl Iterator for Reader {
    type Item = io::Result<Bytes>;

    /// Ends with the first failure.
    fn next(&mut self) -> Option<Self::Item> {
        let chunk = (self.left > 0).then(|| self.chunk())?;
        if chunk.is_err() {
            self.left = 0;
        }
        Some(chunk)
    }
}

/// Buffers of chunks that have left, to be read into again.
#[derive(Default)]
struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    fn lend(self: &Arc<Self>, length: usize) -> Lent {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.resize(length, 0);
        Lent { bytes, home: self.clone() }
    }
}

/// A chunk that leaves its buffer behind.
struct Lent {
    bytes: Vec<u8>,
    home: Arc<Spare>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

/// Hashes what is sent, and leaves the digest once all of it has come by.
pub(crate) struct Tally {
    hasher: Hasher,
    left: u64,
    digest: Arc<OnceLock<Digest>>,
}

impl Tally {
    pub(crate) fn of(left: u64, digest: Arc<OnceLock<Digest>>) -> Self {
        let tally = Self { hasher: Hasher::new(Algorithm::Sha256), left, digest };
        tally.say();
        tally
    }

    fn add(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.left -= chunk.len() as u64;
        self.say();
    }

    fn say(&self) {
        if self.left == 0 {
            self.digest.get_or_init(|| self.hasher.clone().finish());
        }
    }
}

pub(crate) type Chunks = mpsc::Receiver<io::Result<Bytes>>;

/// Reads on a thread, a few chunks ahead, until all is read or nobody takes it any more.
pub(crate) fn ahead(mut reader: Reader) -> Chunks {
    let (give, take) = mpsc::channel(CHUNKS_AHEAD);
    spawn_blocking(move || reader.try_for_each(|chunk| give.blocking_send(chunk)));
    take
}

/// Hashes on another, each chunk before it is handed on: a hash is slower than a disk, so it is not to wait for one.
pub(crate) fn tallied(mut read: Chunks, mut tally: Tally) -> Chunks {
    let (give, take) = mpsc::channel(CHUNKS_AHEAD);
    spawn_blocking(move || {
        while let Some(chunk) = read.blocking_recv() {
            if let Ok(chunk) = &chunk {
                tally.add(chunk);
            }
            if give.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    take
}
