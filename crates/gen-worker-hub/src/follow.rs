//! The digest of a file that is still arriving, on a thread of its own.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use gen_worker_core::{Algorithm, Digest, Hasher};
use tokio::sync::oneshot;

/// How much is read at once. What has just arrived is in the system's cache, so nothing is read from the disk.
const BLOCK_BYTES: usize = 1 << 20;

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

#[derive(Debug, Default, Clone, Copy)]
struct State {
    /// The bytes below this are there for good.
    upto: u64,
    /// Nothing more comes.
    ended: bool,
    /// Nobody wants the digest.
    given_up: bool,
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

    /// The bytes below `upto` are there.
    pub(crate) fn advance(&self, upto: u64) {
        self.mark.change(|state| state.upto = state.upto.max(upto));
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

    /// The state, once there are more than `hashed` bytes or nothing more comes.
    fn wait(&self, hashed: u64) -> State {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |state: &mut State| state.upto == hashed && !state.ended && !state.given_up;
        *self.moved.wait_while(state, waiting).unwrap_or_else(PoisonError::into_inner)
    }
}

fn follow(file: &File, algorithm: Algorithm, mark: &Mark) -> io::Result<Digest> {
    let (mut hasher, mut hashed) = (Hasher::new(algorithm), 0);
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        let State { upto, given_up, .. } = mark.wait(hashed);
        if given_up {
            return Err(io::ErrorKind::Interrupted.into());
        }
        if upto == hashed {
            return Ok(hasher.finish());
        }
        let length = BLOCK_BYTES.min((upto - hashed) as usize);
        file.read_exact_at(&mut block[..length], hashed)?;
        hasher.update(&block[..length]);
        hashed += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_hashed_while_it_grows() {
        let content: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 253) as u8).collect();
        for algorithm in [Algorithm::Sha256, Algorithm::Blake3] {
            let file = Arc::new(tempfile::tempfile().unwrap());
            let follower = Follower::start(Arc::clone(&file), algorithm).unwrap();
            for start in (0..content.len()).step_by(700_000) {
                let end = content.len().min(start + 700_000);
                file.write_all_at(&content[start..end], start as u64).unwrap();
                follower.advance(end as u64);
            }
            assert_eq!(follower.finish().await.unwrap(), Digest::of(algorithm, &content));
        }
    }

    #[tokio::test]
    async fn a_file_that_lost_bytes_has_no_digest() {
        let follower = Follower::start(Arc::new(tempfile::tempfile().unwrap()), Algorithm::Sha256).unwrap();
        follower.advance(10);
        assert!(follower.finish().await.is_err());
    }
}
