//! Carries a file's transfer out: pieces side by side, each resumed where it broke off, checked before it counts.

use std::{
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use gen_worker_core::{Digest, ModelRef};
use gen_worker_net::{HttpClient, HttpResponse, NetError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::{
    blocking::blocking,
    error::HubError,
    fetch::{answer::Answer, ask::Address, batch::Batch, crew::Start},
    part::{Part, PartPlace, Writing},
    progress::FileMeter,
    snapshot::RemoteFile,
    store::Claim,
};

mod answer;
mod ask;
mod batch;
mod climb;
mod crew;

pub(crate) use answer::{SHA256_HEADER, sha256};

/// How many connections, and how large the pieces.
#[derive(Debug, Clone)]
pub(crate) struct Lanes {
    /// The connections of one model, whichever of its files they bring.
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) count: usize,
    pub(crate) range_bytes: u64,
}

/// One file to bring.
#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) client: HttpClient,
    pub(crate) model: ModelRef,
    pub(crate) file: RemoteFile,
    pub(crate) lanes: Lanes,
    pub(crate) meter: FileMeter,
    /// Where redirects led.
    pub(crate) address: Address,
    /// The room that the model was given.
    pub(crate) claim: Arc<Claim>,
}

/// A file that is complete, checked and durable, still under its working name.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
    pub(crate) digest: Digest,
}

impl Fetch {
    /// Brings the file. What proves damaged is thrown away and fetched once more.
    pub(crate) async fn run(self: &Arc<Self>, place: &PartPlace) -> Result<Fetched, HubError> {
        match self.once(place).await {
            Err(error) if error.is_damage() => {
                warn!(model = %self.model, file = %self.file.path, %error, "fetching anew");
                self.forget(place).await?;
            }
            fetched => return fetched,
        }
        let fetched = self.once(place).await;
        if fetched.as_ref().is_err_and(HubError::is_damage) {
            self.forget(place).await?;
        }
        fetched
    }

    async fn once(self: &Arc<Self>, place: &PartPlace) -> Result<Fetched, HubError> {
        let (opened, promise) = (place.clone(), self.file.promise);
        let part = Arc::new(blocking(move || Ok(Part::open(opened, promise)?)).await?);
        self.meter.set(part.present());
        let first = part.missing(self.lanes.range_bytes, 1).pop();
        match first {
            None => self.begin(&part, None).await?,
            Some(piece) => self.transfer(&part, place, piece).await?,
        }
        let (size_bytes, digest) = part.finish().await?;
        self.check(&part, size_bytes, digest)?;
        Ok(Fetched { path: place.part.clone(), size_bytes, digest })
    }

    async fn transfer(
        self: &Arc<Self>,
        part: &Arc<Part>,
        place: &PartPlace,
        piece: Range<u64>,
    ) -> Result<(), HubError> {
        let lane = self.lane().await;
        let answer = self.client.retry(|| self.first(part, &piece), HubError::transport).await?;
        let response = match answer {
            Answer::Nothing => return self.begin(part, None).await,
            Answer::Whole(response) => return self.whole(place, part, response).await,
            Answer::Piece(response) => response,
        };
        self.begin(part, Some(&response)).await?;
        let size = part.promise().size_bytes.unwrap_or(piece.end);
        let start = Start { piece: piece.start..piece.end.min(size), response, lane };
        let fetched = self.pieces(part, start).await;
        let saved = Arc::clone(part);
        blocking(move || Ok(saved.save()?)).await?;
        fetched
    }

    /// Brings one piece; each try goes on where the one before broke off.
    async fn piece(
        &self,
        part: &Arc<Part>,
        piece: Range<u64>,
        response: Option<HttpResponse>,
    ) -> Result<(), HubError> {
        let at = AtomicU64::new(piece.start);
        let coming = Mutex::new(response);
        let attempt = || async {
            let mut rest = at.load(Ordering::Relaxed)..piece.end;
            if rest.is_empty() {
                // It sent more than it said: which of it is right is not known.
                rest.start = piece.start;
                at.store(rest.start, Ordering::Relaxed);
                self.meter.set(part.present() - (piece.end - piece.start));
            }
            let coming = coming.lock().unwrap_or_else(PoisonError::into_inner).take();
            let response = match coming {
                Some(response) => response,
                None => self.next(part, &rest).await?,
            };
            self.pour(part, response, &at, Some(piece.end)).await
        };
        self.client.retry(attempt, HubError::transport).await?;
        let part = Arc::clone(part);
        blocking(move || Ok(part.save()?)).await
    }

    /// Brings a file that is sent as a whole. Each try starts over, in a new file.
    async fn whole(
        &self,
        place: &PartPlace,
        part: &Arc<Part>,
        response: HttpResponse,
    ) -> Result<(), HubError> {
        let coming = Mutex::new(Some(response));
        let attempt = || async {
            let again = coming.lock().unwrap_or_else(PoisonError::into_inner).take();
            let response = match again {
                Some(response) => response,
                None => self.all().await?,
            };
            self.renew(part).await?;
            self.begin(part, Some(&response)).await?;
            self.pour(part, response, &AtomicU64::new(0), part.promise().size_bytes).await
        };
        let poured = self.client.retry(attempt, HubError::transport).await;
        if poured.is_err() {
            // It cannot be taken up, so it is in the way.
            self.forget(place).await?;
        }
        poured
    }

    /// Writes an answer's body from `at` on, which moves with it. One batch is written while the next one comes.
    async fn pour(
        &self,
        part: &Arc<Part>,
        mut response: HttpResponse,
        at: &AtomicU64,
        end: Option<u64>,
    ) -> Result<(), HubError> {
        let mut batch = Batch::new(at.load(Ordering::Relaxed), end);
        let mut writing = None;
        loop {
            let chunk = response.chunk().await;
            let goes_on = match &chunk {
                Ok(Some(bytes)) => batch.take(bytes),
                Ok(None) | Err(_) => false,
            };
            if !goes_on || batch.is_full() {
                self.written(writing.take(), at).await?;
                let (start, bytes) = batch.empty();
                writing = Some(part.write(start, bytes));
            }
            if !goes_on {
                self.written(writing.take(), at).await?;
                self.or_fail(chunk)?;
                return self.or_fail(batch.complete());
            }
        }
    }

    /// Waits for a write and moves `at` to its end.
    async fn written(&self, writing: Option<Writing>, at: &AtomicU64) -> Result<(), HubError> {
        if let Some(writing) = writing {
            let end = writing.await.map_err(std::io::Error::other)??;
            self.meter.add(end - at.swap(end, Ordering::Relaxed));
        }
        Ok(())
    }

    async fn begin(&self, part: &Arc<Part>, response: Option<&HttpResponse>) -> Result<(), HubError> {
        let promise = self.promised(part, response)?;
        let etag = response.and_then(answer::etag).or_else(|| part.etag());
        let (part, claim, listed) = (Arc::clone(part), self.claim.clone(), self.file.promise.size_bytes);
        blocking(move || {
            let lacks = promise.size_bytes.map_or(0, |size| part.lacks(size));
            if listed.is_some() {
                part.begin(promise, etag)?;
                claim.took(lacks);
                return Ok(());
            }
            // For what its list gave no size no room was made.
            if lacks > 0 {
                claim.grow(lacks)?;
            }
            part.begin(promise, etag)
        })
        .await
    }

    async fn renew(&self, part: &Arc<Part>) -> Result<(), HubError> {
        let part = Arc::clone(part);
        self.meter.set(0);
        blocking(move || Ok(part.renew()?)).await
    }

    async fn forget(&self, place: &PartPlace) -> Result<(), HubError> {
        let place = place.clone();
        self.meter.set(0);
        blocking(move || Ok(place.forget()?)).await
    }

    fn check(&self, part: &Part, size_bytes: u64, actual: Digest) -> Result<(), HubError> {
        let promise = part.promise();
        let sized = match promise.size_bytes {
            Some(expected) if expected != size_bytes => Err(NetError::Size { expected, actual: size_bytes }),
            Some(_) | None => Ok(()),
        };
        self.or_fail(sized)?;
        match promise.digest {
            Some(expected) if expected != actual => {
                self.or_fail(Err(NetError::DigestMismatch { expected, actual }))
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn lane(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.lanes.permits);
        permits.acquire_owned().await.expect("the semaphore is never closed")
    }

    fn or_fail<T>(&self, result: Result<T, NetError>) -> Result<T, HubError> {
        result.map_err(|source| HubError::Fetch { model: self.model.to_string(), source })
    }
}
