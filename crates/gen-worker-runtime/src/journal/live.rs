//! Which results of a journal are not known to be delivered.

use std::collections::HashMap;

use super::record;
use crate::{
    outbox::Key,
    wire::{
        Message,
        kept::{Kept, kept},
    },
};

/// The results that the next process would send again.
#[derive(Default)]
pub(super) struct Live {
    results: HashMap<Key, Entry>,
    next: u64,
    /// What their records take in the file.
    pub bytes: u64,
}

struct Entry {
    order: u64,
    message: Message,
}

impl Live {
    /// What is left when these were written one after the other.
    pub(super) fn replay(messages: Vec<Message>) -> Self {
        let mut live = Self::default();
        for message in messages {
            match kept(&message) {
                Some(Kept::Result(run_id, attempt)) => live.put((run_id, attempt), message),
                Some(Kept::Delivered(run_id, attempt)) => live.remove(&(run_id, attempt)),
                None => {}
            }
        }
        live
    }

    /// A result, in place of an earlier one of the same attempt.
    pub(super) fn put(&mut self, key: Key, message: Message) {
        self.remove(&key);
        self.bytes += record::size(&message);
        self.results.insert(key, Entry { order: self.next, message });
        self.next += 1;
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.results.remove(key) {
            self.bytes -= record::size(&entry.message);
        }
    }

    /// The results, oldest first.
    pub(super) fn in_order(&self) -> Vec<(&Key, &Message)> {
        let mut results: Vec<_> = self.results.iter().collect();
        results.sort_unstable_by_key(|(_, entry)| entry.order);
        results.into_iter().map(|(key, entry)| (key, &entry.message)).collect()
    }
}
