//! Results that survive the process: each is on the disk before it may be sent, and leaves it once it is delivered.
//!
//! A thread of its own writes, so that nothing waits for a disk but the results themselves; all that wait share one sync.

mod live;
mod record;
mod store;

use std::{
    io, iter,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel},
    thread,
    time::Duration,
};

use tracing::{error, warn};

use self::store::Store;
use crate::{outbox::Key, wire::Message};

/// Changes that are written together.
const BATCH: usize = 1024;

/// How long the end of the worker may wait for the disk.
const CLOSE: Duration = Duration::from_secs(10);

/// Why `WORKER_STATE_DIR` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another process, or another worker of this one, keeps its results there.
    #[error("WORKER_STATE_DIR: another worker that is still running uses {}", directory.display())]
    Taken {
        /// Which directory.
        directory: PathBuf,
    },
    /// The operating system refuses to read or write there.
    #[error("WORKER_STATE_DIR: results cannot be kept in {}", directory.display())]
    Unusable {
        /// Which directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What happens to a result.
enum Change {
    /// It is to be sent once it is on the disk; `id` is the outbox's.
    Keep { id: u64, key: Key, message: Message },
    /// It is delivered.
    Forget(Key),
}

enum Order {
    Change(Change),
    /// Write what came before, let go of the directory, and drop this.
    Close(SyncSender<()>),
}

/// Tells the journal's thread what to write; never waits. What is queued is bounded by the results that the outbox holds.
pub(crate) struct Journal {
    orders: Sender<Order>,
}

impl Journal {
    /// Takes the directory, made if need be.
    ///
    /// # Errors
    /// It cannot be read and written, or another worker has it.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Writer), JournalError> {
        let store = Store::open(directory)?;
        let (orders, ordered) = channel();
        Ok((Self { orders }, Writer { store, ordered, failed: 0 }))
    }

    /// Writes a result, in place of an earlier one of the same attempt. `false`: the journal is closed.
    pub(crate) fn keep(&self, id: u64, key: Key, message: Message) -> bool {
        let change = Change::Keep { id, key, message };
        self.orders.send(Order::Change(change)).is_ok()
    }

    /// Drops a delivered result.
    pub(crate) fn forget(&self, key: Key) {
        // A closed journal keeps what it has, to be sent again.
        let _ = self.orders.send(Order::Change(Change::Forget(key)));
    }

    /// Waits until everything is written and the directory is free, at most ten seconds.
    pub(crate) fn close(&self) {
        let (done, closed) = sync_channel(0);
        if self.orders.send(Order::Close(done)).is_ok()
            && closed.recv_timeout(CLOSE) == Err(RecvTimeoutError::Timeout)
        {
            warn!(waited_ms = CLOSE.as_millis() as u64, "the result journal is still being written");
        }
    }
}

/// The thread's side.
pub(crate) struct Writer {
    store: Store,
    ordered: Receiver<Order>,
    /// Results that were not written.
    failed: u64,
}

impl Writer {
    /// What an earlier process did not deliver, oldest first. A larger message would end each stream it is written to: it
    /// stays where it is, for a process with another limit.
    pub(crate) fn undelivered(&self, max_bytes: usize) -> Vec<(Key, Message)> {
        let fits = |((run_id, attempt), message): &(Key, Message)| {
            let bytes = message.len();
            if bytes > max_bytes {
                error!(%run_id, attempt, bytes, max_bytes, "a result in the journal is too large for a message");
            }
            bytes <= max_bytes
        };
        self.store.undelivered().into_iter().filter(fits).collect()
    }

    /// Starts the thread. It tells `sendable` the ids of results that are on the disk, or cannot be put there.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(mut self, sendable: impl Fn(&[u64]) + Send + 'static) -> io::Result<()> {
        let work = move || {
            let done = self.work(sendable);
            drop(self);
            drop(done);
        };
        thread::Builder::new().name("journal".to_owned()).spawn(work).map(drop)
    }

    /// Returns when it is told to, or when nobody can tell it anything any more.
    fn work(&mut self, sendable: impl Fn(&[u64])) -> Option<SyncSender<()>> {
        while let Ok(first) = self.ordered.recv() {
            let (mut changes, mut close) = (Vec::new(), None);
            for order in iter::once(first).chain(self.ordered.try_iter()).take(BATCH) {
                match order {
                    Order::Change(change) => changes.push(change),
                    Order::Close(done) => close = Some(done),
                }
                if close.is_some() {
                    break;
                }
            }
            self.write(changes, &sendable);
            if close.is_some() {
                return close;
            }
        }
        None
    }

    fn write(&mut self, changes: Vec<Change>, sendable: impl Fn(&[u64])) {
        let id = |change: &Change| match change {
            Change::Keep { id, .. } => Some(*id),
            Change::Forget(_) => None,
        };
        let results: Vec<u64> = changes.iter().filter_map(id).collect();
        if let Err(error) = self.store.write(changes) {
            self.failed += results.len() as u64;
            error!(%error, results = results.len(), since_start = self.failed,
                "the result journal cannot be written: results are sent all the same, and are lost if the process dies first");
        }
        if !results.is_empty() {
            sendable(&results);
        }
        self.store.compact();
    }
}

#[cfg(test)]
mod tests;
