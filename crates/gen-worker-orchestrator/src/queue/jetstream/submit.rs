//! How a run gets into the stream, and out of it again before anybody leased it.

use std::{error::Error, sync::atomic::Ordering};

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::{self, ErrorCode, context::PublishErrorKind, stream::RawMessageErrorKind},
};
use bytes::Bytes;
use tracing::debug;

use super::{
    JetStream,
    names::{self, Lane},
    packed::pack,
    records::{Entry, Held, Missed, lost},
};
use crate::queue::{Refusal, Unavailable, limits::RETRY_AFTER};

/// Carries the revision of a run's record when the run was published.
pub(super) const REVISION: &str = "Gen-Worker-Revision";

/// Most messages of a tenant that are looked at for one that was never leased. It is among the first: only what others published between
/// two moments of one process is before it.
const LOOKED_AT: usize = 256;

impl JetStream {
    /// A number that the message of a run which is taken from now on is beyond.
    pub(super) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Puts a run into the stream, its payload first if that is large. Doing so again does no harm as long as nobody has leased it.
    async fn publish(&self, held: &Held, payload: &Bytes) -> Result<(), Refusal> {
        let Held { entry, revision } = held;
        let record = &entry.record;
        if entry.blob {
            self.records.put_blob(&names::payload(record), payload).await?;
        }
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, record.run_id.as_str());
        headers.insert(REVISION, revision.to_string().as_str());
        let inline: &[u8] = if entry.blob { &[] } else { payload };
        let sent = self
            .context
            .publish_with_headers(self.names.run(&record.request), headers, pack(entry, inline))
            .await;
        let stored = match sent {
            Ok(stored) => stored.await,
            Err(error) => Err(error),
        };
        let stored = stored.map_err(|error| {
            let refused = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
            match refused.filter(|_| error.kind() == PublishErrorKind::Other) {
                Some(full) if full.error_code() == ErrorCode::STREAM_STORE_FAILED => {
                    if full.to_string().contains("per subject") {
                        Refusal::TenantFull { retry_after: RETRY_AFTER }
                    } else {
                        Refusal::Full { retry_after: RETRY_AFTER }
                    }
                }
                _ => {
                    lost("a run cannot be published")(&error);
                    Refusal::Unavailable
                }
            }
        })?;
        self.newest.fetch_max(stored.sequence, Ordering::Relaxed);
        self.consumers.heard(&Lane::of(&record.request));
        self.changed.notify_one();
        Ok(())
    }

    /// Takes a run that has just been given a record; one that is refused has none.
    pub(super) async fn take(&self, held: &Held, payload: &Bytes) -> Result<(), Refusal> {
        let published = self.publish(held, payload).await;
        if published.is_err_and(|refusal| refusal != Refusal::Unavailable) {
            self.records.withdraw(held).await;
        }
        published
    }

    /// Takes a run that has a record, so far as nobody has: whoever made it may have gone before the stream had the run,
    /// or withdraws it at this moment, which a new revision prevents. `None`: it was withdrawn or leased just now.
    pub(super) async fn take_again(&self, mut known: Held, payload: &Bytes) -> Result<Option<()>, Refusal> {
        if known.entry.record.has_ended() || self.message_of(&known.entry).await?.is_some() {
            return Ok(Some(()));
        }
        match self.records.put(&mut known, &[]).await {
            Ok(()) => self.publish(&known, payload).await.map(Some),
            Err(Missed::Contested) => Ok(None),
            Err(Missed::Unavailable) => Err(Refusal::Unavailable),
        }
    }

    /// The number of a run's message; `None`: there is none, or it is not among the first that are looked at.
    async fn message_of(&self, entry: &Entry) -> Result<Option<u64>, Unavailable> {
        if entry.sequence != 0 {
            return Ok(Some(entry.sequence));
        }
        let subject = self.names.run(&entry.record.request);
        let mut next = entry.after + 1;
        for _ in 0..LOOKED_AT {
            let looking = self.stream.raw_message_builder().sequence(next).next_by_subject(subject.clone());
            match looking.send().await {
                Ok(found) => {
                    let of = found.headers.get(NATS_MESSAGE_ID).map(|id| id.as_str());
                    if of == Some(&entry.record.run_id) {
                        return Ok(Some(found.sequence));
                    }
                    next = found.sequence + 1;
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => return Ok(None),
                Err(error) => return Err(lost("a run cannot be looked for")(&error)),
            }
        }
        Ok(None)
    }

    /// Removes what a run that waited has left. What is not found now goes when it is next delivered.
    pub(super) async fn withdraw(&self, entry: &Entry) {
        if let Ok(Some(sequence)) = self.message_of(entry).await
            && let Err(error) = self.stream.delete_message(sequence).await
        {
            debug!(%error, run_id = entry.record.run_id, "message not removed");
        }
        self.records.forget_payload(entry).await;
    }
}
