//! How many uploads stores still hold open: a worker that ends waits until they are told to forget them.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Longest wait for a store to forget what was given up, and for all of them when the worker ends.
pub(crate) const FORGET_TIMEOUT: Duration = Duration::from_secs(10);

/// Counts what was begun and is neither whole nor forgotten.
#[derive(Debug, Default)]
pub(crate) struct Unfinished {
    count: Mutex<usize>,
    none: Condvar,
}

/// One of them. Whole or forgotten, it is dropped.
#[derive(Debug)]
pub(crate) struct Begun(Arc<Unfinished>);

impl Unfinished {
    /// One more.
    pub(crate) fn begin(self: &Arc<Self>) -> Begun {
        *self.count() += 1;
        Begun(self.clone())
    }

    /// Blocks until there is none; false: that took too long.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let waited = self.none.wait_timeout_while(self.count(), at_most, |count| *count > 0);
        let (_count, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.none.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_is_waited_for_within_a_bound() {
        let unfinished = Arc::<Unfinished>::default();
        assert!(unfinished.wait(Duration::ZERO));
        let (one, another) = (unfinished.begin(), unfinished.begin());
        drop(one);
        assert!(!unfinished.wait(Duration::ZERO));
        let ending = std::thread::spawn(move || drop(another));
        assert!(unfinished.wait(Duration::from_secs(60)));
        ending.join().unwrap();
    }
}
