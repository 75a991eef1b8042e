//! How bytes leave: one client and one budget for all uploads of the process.

use std::{error::Error, future::Future, sync::Arc};

use gen_worker_core::{ByteLimit, metric::Readings, ports::Measured};
use gen_worker_net::{HttpClient, HttpRequest, NetError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

#[cfg(feature = "s3")]
use crate::unfinished::Unfinished;
use crate::{config::UploadConfig, meters::Meters, reader::BUFFERED_BYTES};

/// What one permit for buffers stands for: a semaphore counts less than bytes go up to.
const UNIT_BYTES: u64 = 1 << 10;

/// The way out that [`FileApi`](crate::FileApi) and [`OutputTargets`](crate::OutputTargets) share: an HTTP client, and
/// places for the requests that carry bodies. Clones share both.
#[derive(Debug, Clone)]
pub struct Transfers {
    client: HttpClient,
    places: Arc<Semaphore>,
    buffers: Arc<Semaphore>,
    #[cfg(feature = "s3")]
    unfinished: Arc<Unfinished>,
    meters: Arc<Meters>,
}

/// By which connection a try goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Connection {
    Any,
    /// One that is dialled for it: those that are open may be dead.
    Fresh,
}

impl Connection {
    /// This request, to go by it.
    pub(crate) fn carry(self, request: HttpRequest) -> HttpRequest {
        match self {
            Self::Any => request,
            Self::Fresh => request.fresh_connection(),
        }
    }
}

/// A place among the transfers, with room for its buffers. Both are free again when it is dropped.
pub(crate) struct Place {
    _place: OwnedSemaphorePermit,
    _buffers: OwnedSemaphorePermit,
}

impl Transfers {
    /// A way out by these settings.
    pub fn new(config: &UploadConfig, client: HttpClient) -> Self {
        let places = match config.concurrency {
            0 => Semaphore::MAX_PERMITS,
            count => count.min(Semaphore::MAX_PERMITS),
        };
        Self {
            client,
            places: Arc::new(Semaphore::new(places)),
            buffers: Arc::new(Semaphore::new(units(config.buffer))),
            #[cfg(feature = "s3")]
            unfinished: Arc::default(),
            meters: Arc::default(),
        }
    }

    pub(crate) fn client(&self) -> &HttpClient {
        &self.client
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// What was begun at some store and is neither whole nor forgotten.
    #[cfg(feature = "s3")]
    pub(crate) fn unfinished(&self) -> &Arc<Unfinished> {
        &self.unfinished
    }

    /// Tries as often as the settings allow, each time in a place of its own: none is held while a server asks to be left
    /// alone. All but the first try dial anew.
    pub(crate) async fn retry<T, E, F>(
        &self,
        attempt: impl Fn(Connection) -> F,
        cause: impl Fn(&E) -> Option<&NetError>,
    ) -> Result<T, E>
    where
        E: Error,
        F: Future<Output = Result<T, E>>,
    {
        let mut next = Connection::Any;
        let attempt = || {
            let attempt = attempt(std::mem::replace(&mut next, Connection::Fresh));
            async {
                let _place = self.place().await;
                attempt.await
            }
        };
        self.client.retry(attempt, cause).await
    }

    /// Waits for a place. Held for one try, or while a body is read; nobody who holds one waits for another.
    pub(crate) async fn place(&self) -> Place {
        let open = "the semaphores are never closed";
        let _place = self.places.clone().acquire_owned().await.expect(open);
        let wanted = (BUFFERED_BYTES / UNIT_BYTES) as u32;
        let _buffers = self.buffers.clone().acquire_many_owned(wanted).await.expect(open);
        Place { _place, _buffers }
    }
}

impl Measured for Transfers {
    fn measure(&self, readings: &mut Readings) {
        self.meters.measure(readings);
    }
}

/// Permits for this much: at least what one transfer needs.
fn units(limit: ByteLimit) -> usize {
    match limit.max() {
        None => Semaphore::MAX_PERMITS,
        Some(max) => {
            let units = max.max(BUFFERED_BYTES) / UNIT_BYTES;
            usize::try_from(units).map_or(Semaphore::MAX_PERMITS, |units| units.min(Semaphore::MAX_PERMITS))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use gen_worker_core::ByteSize;

    use super::*;
    use crate::testing::{client, config};

    /// How many places can be had at once.
    fn places(buffer: ByteLimit, concurrency: usize) -> usize {
        let transfers = Transfers::new(&UploadConfig { buffer, concurrency, ..config() }, client());
        let mut held = Vec::new();
        while held.len() < 100 {
            let mut place = std::pin::pin!(transfers.place());
            match place.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(place) => held.push(place),
                Poll::Pending => break,
            }
        }
        held.len()
    }

    #[test]
    fn transfers_are_bounded_by_count_and_by_bytes() {
        let transfers = |count: u64| ByteLimit::Max(ByteSize(count * BUFFERED_BYTES));
        assert_eq!(places(transfers(50), 3), 3);
        assert_eq!(places(transfers(5), 8), 5);
        assert_eq!(places(ByteLimit::Unlimited, 0), 100);
        assert_eq!(places(ByteLimit::Max(ByteSize(1)), 8), 1);
    }
}
