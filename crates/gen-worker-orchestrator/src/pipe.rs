//! A queue between two tasks that holds so many bytes: whoever sends faster than the other takes waits, or is told.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};

/// What an item takes beside what it says, so that many that say nothing are no burden either.
const OVERHEAD: usize = 1 << 10;

/// Why something was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// There is no room for it now.
    Full,
    /// Nobody takes anything any more.
    Gone,
}

/// The end that items are put in. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct PipeSender<T> {
    items: mpsc::UnboundedSender<(Option<OwnedSemaphorePermit>, T)>,
    room: Arc<Semaphore>,
    whole: u32,
}

/// The end that they come out of. It ends when every sender is gone.
#[derive(Debug)]
pub(crate) struct Pipe<T> {
    items: mpsc::UnboundedReceiver<(Option<OwnedSemaphorePermit>, T)>,
    room: Arc<Semaphore>,
}

/// Makes one that holds so many bytes, or a single item that is larger.
pub(crate) fn pipe<T>(bytes: u32) -> (PipeSender<T>, Pipe<T>) {
    let (sender, items) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(bytes as usize));
    (PipeSender { items: sender, room: Arc::clone(&room), whole: bytes }, Pipe { items, room })
}

impl<T> PipeSender<T> {
    /// Waits for room. What is dropped while it waits is not sent.
    pub(crate) async fn send(&self, bytes: usize, item: T) -> Result<(), Unsent> {
        let room = Arc::clone(&self.room).acquire_many_owned(self.cost(bytes)).await;
        self.put(Some(room.map_err(|_| Unsent::Gone)?), item)
    }

    /// Sends if there is room.
    pub(crate) fn try_send(&self, bytes: usize, item: T) -> Result<(), Unsent> {
        let room = Arc::clone(&self.room).try_acquire_many_owned(self.cost(bytes));
        let room = room.map_err(|error| match error {
            TryAcquireError::NoPermits => Unsent::Full,
            TryAcquireError::Closed => Unsent::Gone,
        });
        self.put(Some(room?), item)
    }

    /// Sends whether there is room or not: for the few small words that something begins and ends with.
    pub(crate) fn push(&self, item: T) {
        // Whom it is for may be gone.
        let _ = self.put(None, item);
    }

    /// Waits until nobody takes anything any more.
    pub(crate) async fn closed(&self) {
        self.items.closed().await;
    }

    fn put(&self, room: Option<OwnedSemaphorePermit>, item: T) -> Result<(), Unsent> {
        self.items.send((room, item)).map_err(|_| Unsent::Gone)
    }

    fn cost(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.saturating_add(OVERHEAD)).map_or(self.whole, |bytes| bytes.min(self.whole))
    }
}

impl<T> Stream for Pipe<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.items.poll_recv(cx).map(|item| item.map(|(_room, item)| item))
    }
}

impl<T> Drop for Pipe<T> {
    fn drop(&mut self) {
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn what_is_full_says_so_and_takes_more_once_something_is_taken() {
        let (sender, mut pipe) = pipe(3 * OVERHEAD as u32);
        assert_eq!(sender.try_send(2 * OVERHEAD, 1), Ok(()));
        assert_eq!(sender.try_send(0, 2), Err(Unsent::Full));
        assert_eq!(sender.send(0, 2).now_or_never(), None);
        sender.push(3);
        assert_eq!(pipe.next().await, Some(1));
        assert_eq!(sender.send(usize::MAX, 4).now_or_never(), Some(Ok(())));
        assert_eq!((pipe.next().await, pipe.next().await), (Some(3), Some(4)));
    }

    #[tokio::test]
    async fn who_waits_for_room_hears_that_nobody_takes_anything() {
        let (sender, pipe) = pipe(1);
        sender.send(0, ()).await.unwrap();
        let (waited, ()) = tokio::join!(sender.send(0, ()), async { drop(pipe) });
        assert_eq!(waited, Err(Unsent::Gone));
        assert_eq!(sender.try_send(0, ()), Err(Unsent::Gone));
        sender.closed().await;
    }
}
