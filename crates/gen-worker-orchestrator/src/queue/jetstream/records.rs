//! What is known of each run, in a key-value bucket, and what is too large for it, in an object store. Each step is
//! written with the revision that it was made of, so that of two orchestrators one is refused.

use std::error::Error;

use async_nats::jetstream::{
    kv::{self, CreateErrorKind, UpdateErrorKind},
    object_store::ObjectStore,
    stream::LastRawMessageErrorKind,
};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt,
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::{debug, warn};

use super::{
    LISTING, OBJECT,
    names::{self, text, token},
    newest::Newest,
    packed::{pack, unpack},
    recent::Recent,
};
use crate::{
    queue::{Unavailable, record::Record},
    run::RunView,
};

/// Larger payloads and outputs go to the object store: a message of a server with default settings has at most 1 MiB.
pub(super) const INLINE: usize = 512 << 10;

/// What is written to have the servers agree; no run's key has such a sign in it.
const AGREED: &str = "agreed/";

/// How often a step is tried anew on a record that somebody else has changed meanwhile.
pub(super) const TRIES: usize = 8;

/// A run's record with where its message is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// The number of the run's message in the stream; 0: it was never leased. A repetition has another.
    pub(super) sequence: u64,
    /// The message's number is greater than this.
    #[serde(default)]
    pub(super) after: u64,
    /// Where the message is acknowledged, as it was delivered last.
    pub(super) ack: String,
    /// Whether the payload is in the object store.
    pub(super) blob: bool,
    /// Whether the output is there, and not behind the entry.
    pub(super) output_blob: bool,
}

impl Entry {
    pub(super) fn new(record: Record, blob: bool, after: u64) -> Self {
        Self { record, sequence: 0, after, ack: String::new(), blob, output_blob: false }
    }

    /// Whether the run has not ended, and this is the message that it may be leased by.
    pub(super) fn waits_in(&self, sequence: u64) -> bool {
        !self.record.has_ended() && (self.sequence == 0 || self.sequence == sequence)
    }
}

/// An entry as it was read or written.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) entry: Entry,
    pub(super) revision: u64,
}

/// Why a step was not made.
#[derive(Debug)]
pub(super) enum Missed {
    /// Somebody else has changed the record.
    Contested,
    Unavailable,
}

impl From<Missed> for Unavailable {
    fn from(_: Missed) -> Self {
        Self
    }
}

/// Logs why the servers could not do something.
pub(super) fn lost(what: &'static str) -> impl Fn(&dyn Error) -> Unavailable {
    move |error| {
        warn!(%error, what, "NATS");
        Unavailable
    }
}

/// The records of all runs.
pub(super) struct Records {
    pub(super) bucket: kv::Store,
    pub(super) blobs: ObjectStore,
    newest: Mutex<Newest>,
    pub(super) recent: Recent,
}

impl Records {
    pub(super) fn new(bucket: kv::Store, blobs: ObjectStore) -> Self {
        Self { bucket, blobs, newest: Mutex::default(), recent: Recent::default() }
    }

    /// A run with what is behind its entry; `None`: there is no such run. It may be how it stood a moment ago: any
    /// server answers, and the leader only where another knows of none.
    pub(super) async fn get(&self, run_id: &str) -> Result<Option<(Held, Bytes)>, Unavailable> {
        let found = self.bucket.entry(token(run_id)).await;
        let found = found.map_err(|e| lost("a record cannot be read")(&e))?;
        match found.filter(|found| found.operation == kv::Operation::Put) {
            Some(found) => held(found.value, found.revision).map(Some),
            None => match self.get_of_leader(run_id).await? {
                None => {
                    self.agree().await?;
                    self.get_of_leader(run_id).await
                }
                found => Ok(found),
            },
        }
    }

    /// Has most servers agree on something. A leader that was cut off from them answers for some seconds as if it led: what it
    /// does not know may be there, and what it shows may be over. It cannot do this, and whoever can has all that was written before.
    pub(super) async fn agree(&self) -> Result<(), Unavailable> {
        let agreed = self.bucket.put(AGREED, Bytes::new()).await;
        agreed.map(drop).map_err(|e| lost("the servers do not agree")(&e))
    }

    /// The same as the leader has it.
    pub(super) async fn get_of_leader(&self, run_id: &str) -> Result<Option<(Held, Bytes)>, Unavailable> {
        let subject = format!("{}{}", self.bucket.prefix, token(run_id));
        match self.bucket.stream.get_last_raw_message_by_subject(&subject).await {
            // A mark that it was withdrawn.
            Ok(found) if found.headers.get("KV-Operation").is_some() => Ok(None),
            Ok(found) => held(found.payload, found.sequence).map(Some),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(lost("a record cannot be read")(&error)),
        }
    }

    /// A run with what is behind its entry, as it was written here a moment ago, or else as the servers have it. `is_over`: it is
    /// known to have ended, so a server that does not know it yet is not believed.
    pub(super) async fn show(
        &self,
        run_id: &str,
        is_over: bool,
    ) -> Result<Option<(Held, Bytes)>, Unavailable> {
        if let Some(recent) = self.recent.get(run_id, is_over, Instant::now()) {
            return Ok(Some(recent));
        }
        match self.get(run_id).await? {
            Some((held, _)) if is_over && !held.entry.record.has_ended() => self.get_of_leader(run_id).await,
            found => Ok(found),
        }
    }

    /// The same with its output, wherever that is.
    pub(super) async fn read(
        &self,
        run_id: &str,
        is_over: bool,
    ) -> Result<Option<(Held, Bytes)>, Unavailable> {
        let Some((held, output)) = self.show(run_id, is_over).await? else { return Ok(None) };
        let Entry { record, output_blob, .. } = &held.entry;
        let output = if *output_blob { self.blob(&names::output(record)).await? } else { output };
        Ok(Some((held, output)))
    }

    /// Makes the record of a new run; `None`: there is one.
    pub(super) async fn create(&self, entry: &Entry) -> Result<Option<Held>, Unavailable> {
        let value = pack(entry, &[]);
        let size = value.len();
        match self.bucket.create(token(&entry.record.run_id), value).await {
            Ok(revision) => {
                let held = Held { entry: entry.clone(), revision };
                self.recent.keep(&held, Bytes::new(), size, Instant::now());
                Ok(Some(held))
            }
            Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(lost("a record cannot be made")(&error)),
        }
    }

    /// Removes the record of a run that was not taken after all, unless somebody else has taken it meanwhile.
    pub(super) async fn withdraw(&self, held: &Held) {
        let key = token(&held.entry.record.run_id);
        self.recent.forget(&held.entry.record.run_id);
        if let Err(error) = self.bucket.purge_expect_revision(key, Some(held.revision)).await {
            debug!(%error, run_id = held.entry.record.run_id, "record not withdrawn");
        }
    }

    /// Writes a step, if nobody else has made one meanwhile.
    pub(super) async fn put(&self, held: &mut Held, output: &[u8]) -> Result<(), Missed> {
        let key = token(&held.entry.record.run_id);
        let value = pack(&held.entry, output);
        let written = self.bucket.update(key, value.clone(), held.revision).await;
        held.revision = written.map_err(|error| {
            self.recent.forget(&held.entry.record.run_id);
            if error.kind() == UpdateErrorKind::WrongLastRevision {
                return Missed::Contested;
            }
            lost("a record cannot be written")(&error);
            Missed::Unavailable
        })?;
        let behind = value.slice(value.len() - output.len()..);
        self.recent.keep(held, behind, value.len(), Instant::now());
        Ok(())
    }

    /// Makes a step on the record as it is known here, or else as the leader has it, until nobody gets in the way: a server that
    /// lags may show what is over, and a step that would then be refused is not tried again. A step without an output changes
    /// nothing; that, and that there is no such run, is only believed of a leader that is one.
    pub(super) async fn step<T>(
        &self,
        run_id: &str,
        mut known: Option<Held>,
        mut step: impl FnMut(&mut Entry) -> (T, Option<Bytes>),
    ) -> Result<Option<(T, Held)>, Unavailable> {
        let mut agreed = false;
        for _ in 0..TRIES {
            let found = match known.take() {
                Some(held) => Some(held),
                None => self.get_of_leader(run_id).await?.map(|(held, _)| held),
            };
            let stepped = found.map(|mut held| (step(&mut held.entry), held));
            let (done, output, mut held) = match stepped {
                Some(((done, Some(output)), held)) => (done, output, held),
                unchanged if agreed => return Ok(unchanged.map(|((done, _), held)| (done, held))),
                _ => {
                    self.agree().await?;
                    agreed = true;
                    continue;
                }
            };
            if held.entry.output_blob {
                self.put_blob(&names::output(&held.entry.record), &output).await?;
            }
            let inline: &[u8] = if held.entry.output_blob { &[] } else { &output };
            match self.put(&mut held, inline).await {
                Ok(()) => return Ok(Some((done, held))),
                Err(Missed::Contested) => {}
                Err(Missed::Unavailable) => return Err(Unavailable),
            }
        }
        Err(Unavailable)
    }

    pub(super) async fn put_blob(&self, name: &str, bytes: &Bytes) -> Result<(), Unavailable> {
        let stored = self.blobs.put(name, &mut bytes.as_ref()).await;
        stored.map(drop).map_err(|e| lost("an object cannot be written")(&e))
    }

    /// Removes the payload of a run that nobody will have any more.
    pub(super) async fn forget_payload(&self, entry: &Entry) {
        if entry.blob
            && let Err(error) = self.blobs.delete(names::payload(&entry.record)).await
        {
            debug!(%error, run_id = entry.record.run_id, "payload not removed");
        }
    }

    pub(super) async fn blob(&self, name: &str) -> Result<Bytes, Unavailable> {
        let reading = async {
            let mut object = self.blobs.get(name).await.map_err(|e| lost("an object cannot be read")(&e))?;
            let mut bytes = Vec::with_capacity(object.info.size);
            object.read_to_end(&mut bytes).await.map_err(|e| lost("an object cannot be read")(&e))?;
            Ok(bytes.into())
        };
        // One that is replaced or removed meanwhile never ends.
        timeout(OBJECT, reading).await.map_err(|e| lost("an object does not come to an end")(&e))?
    }

    /// The newest runs of a tenant, or of all if none is named. One reads for all who ask meanwhile.
    pub(super) async fn newest(
        &self,
        tenant_id: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RunView>, Unavailable> {
        let reading = async {
            let mut newest = self.newest.lock().await;
            let info = self.bucket.stream.get_info().await;
            let state = info.map_err(|e| lost("the records cannot be counted")(&e))?.state;
            let next = newest.next(state.last_sequence);
            // Of an empty bucket nothing would ever come.
            if state.messages > 0 && next <= state.last_sequence {
                self.read_from(next, state.last_sequence, &mut newest).await?;
            }
            Ok(newest.list(tenant_id, limit, state.first_sequence))
        };
        timeout(LISTING, reading).await.map_err(|late| lost("the records cannot be read in time")(&late))?
    }

    async fn read_from(&self, next: u64, last: u64, newest: &mut Newest) -> Result<(), Unavailable> {
        let entries = self.bucket.watch_all_from_revision(next).await;
        let mut entries = entries.map_err(|e| lost("the records cannot be read")(&e))?;
        while let Some(entry) = entries.next().await {
            let entry = entry.map_err(|e| lost("the records cannot be read")(&e))?;
            let put = entry.operation == kv::Operation::Put;
            let run = unpack::<Entry>(entry.value).ok().filter(|_| put);
            let run = run.map(|(entry, _)| entry.record.summary());
            newest.see(entry.revision, &text(&entry.key).unwrap_or_default(), run);
            if entry.revision >= last {
                break;
            }
        }
        Ok(())
    }
}

fn held(value: Bytes, revision: u64) -> Result<(Held, Bytes), Unavailable> {
    let (entry, output) = unpack(value).map_err(|e| lost("a record is not ours")(&e))?;
    Ok((Held { entry, revision }, output))
}
