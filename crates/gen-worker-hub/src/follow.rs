//! The digest of a file that is still arriving, on a thread of its own.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest, Hasher};
use tokio::sync::oneshot;

/// How much is read at once. What has just arrived is in the system's cache, so nothing is read from the disk.
const BLOCK_BYTES: usize = 1 << 20;
/// How much is kept in memory until it is hashed; what comes beyond it is read back.
const KEPT_BYTES: usize = 2 << 20;

/// Hashes a file from its first byte on as far as it is there. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Follower {
    mark: Arc<Mark>,
    digest: oneshot::Receiver<io::Result<Digest>>,
}

#[derive(Debug, Default)]
struct Mark {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The bytes below this are there for good.
    upto: u64,
    /// Some of them that are still in memory, in order, with the places where they begin.
    kept: VecDeque<Kept>,
    /// Nothing more comes.
    ended: bool,
    /// Nobody wants the digest.
    given_up: bool,
}

type Kept = (u64, Vec<Bytes>);

/// What is to be hashed next.
enum Next {
    /// These bytes.
    Kept(Vec<Bytes>),
    /// So many of the file.
    Read(u64),
    /// Nothing more: all has been.
    Done,
    /// Nothing more: nobody wants it.
    GivenUp,
}

impl Follower {
    /// Starts the thread.
    pub(crate) fn start(file: Arc<File>, algorithm: Algorithm) -> io::Result<Self> {
        let mark = Arc::<Mark>::default();
        let (sender, digest) = oneshot::channel();
        let followed = Arc::clone(&mark);
        let work = move || {
            // Nobody waits for the digest of a download that was given up.
            let _ = sender.send(follow(&file, algorithm, &followed));
        };
        thread::Builder::new().name("hash".to_owned()).spawn(work)?;
        Ok(Self { mark, digest })
    }

    /// The bytes below `upto` are there; these are those that made it grow.
    pub(crate) fn advance(&self, upto: u64, kept: Option<Kept>) {
        self.mark.change(|state| state.advance(upto, kept));
    }

    /// The digest of what is there.
    pub(crate) async fn finish(mut self) -> io::Result<Digest> {
        self.mark.change(|state| state.ended = true);
        (&mut self.digest).await.map_err(io::Error::other)?
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.mark.change(|state| state.given_up = true);
    }
}

impl Mark {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.moved.notify_one();
    }

    /// What comes after so many bytes, once it is there.
    fn next(&self, hashed: u64) -> Next {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |state: &mut State| state.upto == hashed && !state.ended && !state.given_up;
        self.moved.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner).next(hashed)
    }
}

impl State {
    fn advance(&mut self, upto: u64, kept: Option<Kept>) {
        self.upto = self.upto.max(upto);
        if self.kept_bytes() < KEPT_BYTES {
            self.kept.extend(kept);
        }
    }

    fn next(&mut self, hashed: u64) -> Next {
        if self.given_up {
            return Next::GivenUp;
        }
        let upto = self.kept.front().map_or(self.upto, |(start, _)| *start);
        if upto > hashed {
            return Next::Read(upto - hashed);
        }
        self.kept.pop_front().map_or(Next::Done, |(_, batch)| Next::Kept(batch))
    }

    fn kept_bytes(&self) -> usize {
        self.kept.iter().flat_map(|(_, batch)| batch).map(Bytes::len).sum()
    }
}

fn follow(file: &File, algorithm: Algorithm, mark: &Mark) -> io::Result<Digest> {
    let (mut hasher, mut hashed) = (Hasher::new(algorithm), 0);
    let mut block = Vec::new();
    loop {
        match mark.next(hashed) {
            Next::Kept(batch) => {
                for bytes in batch {
                    hasher.update(&bytes);
                    hashed += bytes.len() as u64;
                }
            }
            Next::Read(most) => {
                block.resize(BLOCK_BYTES, 0);
                let bytes = &mut block[..BLOCK_BYTES.min(usize::try_from(most).unwrap_or(BLOCK_BYTES))];
                file.read_exact_at(bytes, hashed)?;
                hasher.update(bytes);
                hashed += bytes.len() as u64;
            }
            Next::Done => return Ok(hasher.finish()),
            Next::GivenUp => return Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> Vec<u8> {
        (0..9_000_000_u32).map(|n| (n % 253) as u8).collect()
    }

    #[tokio::test]
    async fn a_file_is_hashed_while_it_grows() {
        let content = content();
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let follower = Follower::start(Arc::clone(&file), algorithm).unwrap();
            for (nth, start) in (0..content.len()).step_by(700_000).enumerate() {
                let end = content.len().min(start + 700_000);
                file.write_all_at(&content[start..end], start as u64).unwrap();
                let bytes = vec![Bytes::copy_from_slice(&content[start..end])];
                follower.advance(end as u64, (nth % 3 > 0).then_some((start as u64, bytes)));
            }
            assert_eq!(follower.finish().await.unwrap(), Digest::of(algorithm, &content));
        }
    }

    #[tokio::test]
    async fn what_is_in_memory_is_not_read_back() {
        let content = content();
        // Of its content the file has the first byte only.
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(&content[..1], 0).unwrap();
        let follower = Follower::start(file, Algorithm::Sha256).unwrap();
        let bytes = Bytes::copy_from_slice(&content[1..]);
        follower.advance(content.len() as u64, Some((1, vec![bytes.slice(..5), bytes.slice(5..)])));
        assert_eq!(follower.finish().await.unwrap(), Digest::of(Algorithm::Sha256, &content));
    }

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let mut state = State::default();
        let most = KEPT_BYTES as u64;
        let half = || vec![Bytes::from(vec![0; KEPT_BYTES / 2])];
        for nth in 0..9 {
            state.advance((nth + 1) * most / 2, Some((nth * most / 2, half())));
        }
        assert_eq!(state.kept_bytes(), KEPT_BYTES);
        // Those go first, and then what was not kept is read.
        assert!(matches!(state.next(0), Next::Kept(_)));
        assert!(matches!(state.next(most / 2), Next::Kept(_)));
        assert!(matches!(state.next(most), Next::Read(bytes) if bytes == 7 * most / 2));
        assert!(matches!(state.next(9 * most / 2), Next::Done));
    }

    #[tokio::test]
    async fn a_file_that_lost_bytes_has_no_digest() {
        let follower = Follower::start(Arc::new(tempfile::tempfile().unwrap()), Algorithm::Sha256).unwrap();
        follower.advance(10, None);
        assert!(follower.finish().await.is_err());
    }
}
