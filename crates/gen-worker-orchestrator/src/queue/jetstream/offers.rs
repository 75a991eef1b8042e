//! Messages as they are delivered, and what becomes of them: a lease, another wait, or nothing more.

use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use tracing::{debug, error};

use super::{
    Duration, JetStream, names,
    packed::unpack,
    records::{Entry, Held, Missed, lost},
    said::FAILED,
    submit::REVISION,
};
use crate::{
    auth::Now,
    queue::{
        Lease, Unavailable,
        record::{Standing, Verdict},
    },
};

/// How long a message waits that somebody else's step got in the way of.
const CONTESTED: Duration = Duration::from_millis(50);

/// A message that may be leased.
pub(super) struct Offer {
    pub(super) message: Message,
    pub(super) held: Held,
    payload: Bytes,
}

impl JetStream {
    /// Sees what a delivered message is about; `None`: nothing is to be leased.
    pub(super) async fn offer(&self, message: Message) -> Result<Option<Offer>, Unavailable> {
        let info = message.info().map_err(|error| lost("a message is not ours")(error.as_ref()))?;
        let (sequence, delivered) = (info.stream_sequence, info.delivered);
        let (first, payload): (Entry, Bytes) = match unpack(message.payload.clone()) {
            Ok(run) => run,
            Err(error) => {
                error!(%error, sequence, "a message is no run, and is removed from the queue");
                return answer(&message, AckKind::Term).await.map(|()| None);
            }
        };
        let revision =
            message.headers.as_ref().and_then(|headers| headers.get(REVISION)?.as_str().parse().ok());
        // One that was never delivered is as it was published, or its lease is refused.
        let known = match revision.filter(|_| delivered == 1) {
            Some(revision) => Some(Held { entry: first, revision }),
            None => self.records.get(&first.record.run_id).await?.map(|(held, _)| held),
        };
        // What is not known is too old to be.
        let Some(mut held) = known.filter(|held| held.entry.waits_in(sequence)) else {
            return answer(&message, AckKind::Ack).await.map(|()| None);
        };
        held.entry.sequence = sequence;
        held.entry.ack = message.reply.as_ref().map(ToString::to_string).unwrap_or_default();
        if held.entry.record.standing == Standing::Running {
            return self.delivered_again(&message, held).await.map(|()| None);
        }
        let payload = if held.entry.blob {
            self.records.blob(&names::payload(&held.entry.record)).await?
        } else {
            payload
        };
        Ok(Some(Offer { message, held, payload }))
    }

    /// A message was delivered whose run a worker has: nobody extended the lease, unless the servers lost track.
    async fn delivered_again(&self, message: &Message, mut held: Held) -> Result<(), Unavailable> {
        let Entry { record, ack, .. } = &mut held.entry;
        if self.leases.delivered_again(&record.run_id, record.attempt, ack) {
            return Ok(());
        }
        let verdict = record.lose(Now::read().unix_ms);
        match self.records.put(&mut held, &[]).await {
            Ok(()) => {}
            Err(Missed::Contested) => return answer(message, AckKind::Nak(Some(CONTESTED))).await,
            Err(Missed::Unavailable) => return Err(Unavailable),
        }
        if let Verdict::Again { after, failed } = verdict {
            if let Some(failed) = failed {
                self.say_of_step(&held, FAILED, failed.to_string().into());
            }
            return answer(message, AckKind::Nak(Some(after))).await;
        }
        self.ended(&held.entry).await;
        Ok(())
    }

    /// Has the servers deliver a message to somebody else, or once more, after a while.
    pub(super) async fn hand_back(&self, message: &Message, run_id: &str, after: Option<Duration>) {
        if !self.is_had(message, run_id).await {
            let _ = answer(message, AckKind::Nak(after)).await;
        }
    }

    /// Whether a message that is delivered for the first time is of a run that somebody has: the servers have lost track of all their
    /// deliveries. Whoever has it extends the lease, if nobody says anything else of it.
    async fn is_had(&self, message: &Message, run_id: &str) -> bool {
        let Some(info) = message.info().ok().filter(|info| info.delivered == 1) else { return false };
        let entry = match self.records.get_of_leader(run_id).await {
            Ok(Some((held, _))) => held.entry,
            Ok(None) => return false,
            // If nobody has it, the lease ends.
            Err(Unavailable) => return true,
        };
        let is_had = entry.record.standing == Standing::Running && entry.waits_in(info.stream_sequence);
        if let Some(ack) = message.reply.as_ref().filter(|_| is_had) {
            self.leases.delivered_again(run_id, entry.record.attempt, ack);
        }
        is_had
    }

    /// Gives a run to a worker.
    pub(super) async fn start(&self, offer: Offer, session: u64, worker_id: &str) -> Option<Lease> {
        let Offer { message, mut held, payload } = offer;
        let run_id = held.entry.record.run_id.clone();
        let started = held.entry.record.start(worker_id, Now::read().unix_ms).to_string();
        if let Err(missed) = self.records.put(&mut held, &[]).await {
            debug!(run_id, ?missed, "run not leased");
            self.hand_back(&message, &run_id, Some(CONTESTED)).await;
            return None;
        }
        let lane = self.names.run(&held.entry.record.request);
        let request = held.entry.record.to_request(payload);
        self.leases.keep(held);
        self.say_started(&run_id, &lane, started.into());
        Some(Lease { session, request })
    }
}

async fn answer(message: &Message, kind: AckKind) -> Result<(), Unavailable> {
    let answered = message.ack_with(kind).await;
    answered.map_err(|error| lost("a message cannot be answered")(error.as_ref()))
}
