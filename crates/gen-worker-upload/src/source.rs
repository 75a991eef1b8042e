//! A body, or a part of one, as one request sends it.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join},
    stream::{self, BoxStream},
};
use gen_worker_core::{ByteLimit, Digest, Event, RunId, ports::Watch};
use gen_worker_net::{BodySource, OpenBody};
use tokio::{sync::OnceCell, task::spawn_blocking};

use crate::{
    content,
    error::UploadError,
    reader::{self, CHUNK_BYTES, Reader, Tally},
    spool::Body,
};

/// A caller is told no oftener than this how far an upload is.
const SAY_EVERY: Duration = Duration::from_millis(250);

/// How far an upload is, and whom that is told.
pub(crate) struct Progress {
    watch: Watch,
    name: Option<(RunId, String)>,
    total: u64,
    done: AtomicU64,
    said: Mutex<Instant>,
}

impl Progress {
    /// Of `total` bytes of a run's whole output.
    pub(crate) fn of_output(total: u64, watch: &Watch) -> Arc<Self> {
        Self::new(None, total, watch)
    }

    /// Of `total` bytes of a file that a run saves under this reference.
    pub(crate) fn of_file(run_id: &RunId, reference: &str, total: u64, watch: &Watch) -> Arc<Self> {
        Self::new(Some((run_id.clone(), reference.to_owned())), total, watch)
    }

    fn new(name: Option<(RunId, String)>, total: u64, watch: &Watch) -> Arc<Self> {
        let (watch, said) = (watch.clone(), Mutex::new(Instant::now()));
        Arc::new(Self { watch, name, total, done: AtomicU64::new(0), said })
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if done < self.total && !self.is_due() {
            return;
        }
        let event = Event::output_upload(self.name.as_ref().map(|(_, name)| name.as_str()), done, self.total);
        self.watch.events.emit(match &self.name {
            Some((run_id, _)) => event.about(run_id),
            None => event,
        });
    }

    fn is_due(&self) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let due = said.elapsed() >= SAY_EVERY;
        if due {
            *said = Instant::now();
        }
        due
    }
}

/// The SHA-256 of what the last try sent; absent until its last byte was read.
#[derive(Default)]
struct Sent(Mutex<Arc<OnceLock<Digest>>>);

impl Sent {
    fn digest(&self) -> Option<Digest> {
        self.cell().get().copied()
    }

    /// A place for the digest of another try. What still reads for the one before has another place.
    fn anew(&self) -> Arc<OnceLock<Digest>> {
        let mut cell = self.cell();
        *cell = Arc::default();
        cell.clone()
    }

    fn cell(&self) -> MutexGuard<'_, Arc<OnceLock<Digest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body on its way out, within its limit.
pub(crate) struct Outgoing {
    body: Body,
    pub(crate) size: u64,
    sent: Arc<Sent>,
    /// The digest of what is in memory, once it is known.
    held: OnceCell<Digest>,
    progress: Arc<Progress>,
}

impl Outgoing {
    /// Checks a body's size.
    pub(crate) async fn new(body: &Body, limit: ByteLimit, watch: &Watch) -> Result<Self, UploadError> {
        let size = content::size(body, limit).await?;
        let progress = Progress::of_output(size, watch);
        Ok(Self { body: body.clone(), size, sent: Arc::default(), held: OnceCell::new(), progress })
    }

    /// The result of `sending`. What is in memory is hashed in the meantime, once for all tries; a file is hashed as it is
    /// read.
    pub(crate) async fn beside_its_digest<T>(&self, sending: impl Future<Output = T>) -> T {
        let hashing = async {
            if let Body::Bytes(bytes) = &self.body {
                // Without it the output is not confirmed.
                self.held.get_or_try_init(|| content::sha256(bytes.clone())).await.ok();
            }
        };
        join(sending, hashing).await.0
    }

    /// All of it, for one request.
    pub(crate) fn whole(&self) -> Arc<Piece> {
        let mut piece = Piece::new(&self.body, 0..self.size, &self.progress);
        if let Body::File(_) = self.body {
            piece.sent = Some(self.sent.clone());
        }
        Arc::new(piece)
    }

    /// The SHA-256 of what was sent.
    ///
    /// # Errors
    /// A server said yes before it had read all.
    pub(crate) fn digest(&self) -> Result<Digest, UploadError> {
        self.held.get().copied().or_else(|| self.sent.digest()).ok_or(UploadError::Unconfirmed)
    }
}

/// What one request sends.
pub(crate) struct Piece {
    body: Body,
    /// Which bytes of it.
    range: Range<u64>,
    /// The CRC-32C of a file that was measured before it is sent.
    measured: Option<u32>,
    /// Where the digest of what is sent is left; `None`: it is known already.
    sent: Option<Arc<Sent>>,
    progress: Arc<Progress>,
    /// How far some try came: what is sent again does not count again.
    reached: Arc<AtomicU64>,
    tries: AtomicU64,
    /// The last try whose last byte was handed to its connection.
    sent_by: Arc<AtomicU64>,
}

impl Piece {
    pub(crate) fn new(body: &Body, range: Range<u64>, progress: &Arc<Progress>) -> Self {
        let (body, progress) = (body.clone(), progress.clone());
        let (reached, sent_by) = Default::default();
        Self { body, range, measured: None, sent: None, progress, reached, tries: AtomicU64::new(0), sent_by }
    }

    /// The same, which sends nothing else than what was measured.
    pub(crate) fn measured(self, crc32c: Option<u32>) -> Self {
        Self { measured: crc32c, ..self }
    }

    /// Takes a server's yes for what it is.
    ///
    /// # Errors
    /// The server said yes before it could have read all.
    pub(crate) fn confirm(&self) -> Result<(), UploadError> {
        let tries = self.tries.load(Ordering::Acquire);
        let is_sent = self.range.is_empty() || self.sent_by.load(Ordering::Acquire) == tries;
        if is_sent { Ok(()) } else { Err(UploadError::Unconfirmed) }
    }

    async fn chunks(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        match &self.body {
            Body::Bytes(bytes) => {
                let range = self.range.start as usize..self.range.end as usize;
                Ok(stream::iter(slices(bytes.slice(range)).map(Ok)).boxed())
            }
            Body::File(path) => {
                let (path, range) = (path.clone(), self.range.clone());
                let length = range.end - range.start;
                let tally = self.sent.as_ref().map(|sent| Tally::of(length, sent.anew()));
                let measured = self.measured;
                let opened = spawn_blocking(move || Reader::open(&path, range, measured)).await;
                let read = reader::ahead(opened.map_err(io::Error::other)??);
                let chunks = match tally {
                    Some(tally) => reader::tallied(read, tally),
                    None => read,
                };
                Ok(stream::unfold(chunks, async |mut chunks| Some((chunks.recv().await?, chunks))).boxed())
            }
        }
    }
}

impl BodySource for Piece {
    fn open(&self) -> BoxFuture<'_, io::Result<OpenBody>> {
        async move {
            let (progress, reached, sent_by) =
                (self.progress.clone(), self.reached.clone(), self.sent_by.clone());
            let this = self.tries.fetch_add(1, Ordering::AcqRel) + 1;
            let (length, mut at) = (self.range.end - self.range.start, 0);
            let counted = self.chunks().await?.inspect(move |chunk| {
                at += chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
                if at == length {
                    sent_by.store(this, Ordering::Release);
                }
                let before = reached.fetch_max(at, Ordering::Relaxed);
                if at > before {
                    progress.add(at - before);
                }
            });
            Ok(OpenBody { length, chunks: counted.boxed() })
        }
        .boxed()
    }
}

fn slices(mut rest: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!rest.is_empty()).then(|| rest.split_to(rest.len().min(CHUNK_BYTES))))
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;
    use gen_worker_core::Algorithm;

    use super::*;
    use crate::testing::{bytes, watch};

    async fn read(piece: &Piece) -> io::Result<Vec<u8>> {
        let body = piece.open().await?;
        let chunks: Vec<Bytes> = body.chunks.try_collect().await?;
        Ok(chunks.concat())
    }

    #[tokio::test]
    async fn each_try_reads_and_hashes_the_same_range() {
        let directory = tempfile::tempdir().unwrap();
        let (path, data) = (directory.path().join("out"), bytes(CHUNK_BYTES * 12 + 9));
        std::fs::write(&path, &data).unwrap();
        let (watch, heard) = watch();
        let range = 5..data.len() as u64 - 3;
        let progress = Progress::of_output(range.end - range.start, &watch);
        let wanted = &data[5..data.len() - 3];
        for body in [Body::File(path.clone()), Body::Bytes(data.clone())] {
            let piece = Piece::new(&body, range.clone(), &progress);
            assert_eq!(read(&piece).await.unwrap(), wanted);
        }
        let sent = Arc::new(Sent::default());
        let mut piece = Piece::new(&Body::File(path.clone()), range, &progress);
        piece.sent = Some(sent.clone());
        let half: Vec<_> = piece.open().await.unwrap().chunks.take(1).collect().await;
        assert!(half[0].is_ok() && sent.digest().is_none());
        for _ in 0..2 {
            assert_eq!(read(&piece).await.unwrap(), wanted);
            assert_eq!(sent.digest(), Some(Digest::of(Algorithm::Sha256, wanted)));
        }
        let last = heard.payloads("output.upload").pop().unwrap();
        assert_eq!(last["bytes_total"], wanted.len());

        std::fs::write(&path, &data[..100]).unwrap();
        assert!(read(&piece).await.is_err() && sent.digest().is_none());
        std::fs::remove_file(path).unwrap();
        assert!(piece.open().await.is_err());
    }

    #[tokio::test]
    async fn what_is_sent_again_does_not_count_again() {
        let (watch, heard) = watch();
        let progress = Progress::of_output(1000, &watch);
        let piece = Piece::new(&Body::Bytes(bytes(1000)), 0..1000, &progress);
        for _ in 0..3 {
            read(&piece).await.unwrap();
        }
        let [said] = &heard.payloads("output.upload")[..] else { panic!("once") };
        assert_eq!((&said["bytes_done"], &said["bytes_total"]), (&1000.into(), &1000.into()));
    }

    #[tokio::test]
    async fn a_yes_counts_once_the_last_try_has_sent_all() {
        let progress = Progress::of_output(1, &watch().0);
        let piece = Piece::new(&Body::Bytes(bytes(CHUNK_BYTES + 1)), 0..CHUNK_BYTES as u64 + 1, &progress);
        read(&piece).await.unwrap();
        assert!(piece.confirm().is_ok());
        let half: Vec<_> = piece.open().await.unwrap().chunks.take(1).collect().await;
        assert!(half[0].is_ok() && piece.confirm().is_err());
    }

    #[tokio::test]
    async fn nothing_has_a_digest_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        std::fs::write(&path, "").unwrap();
        let (sent, (watch, _)) = (Arc::new(Sent::default()), watch());
        let progress = Progress::of_output(0, &watch);
        let mut piece = Piece::new(&Body::File(path), 0..0, &progress);
        piece.sent = Some(sent.clone());
        assert_eq!(read(&piece).await.unwrap(), b"");
        assert!(piece.confirm().is_ok());
        assert_eq!(sent.digest(), Some(Digest::of(Algorithm::Sha256, b"")));
    }
}
