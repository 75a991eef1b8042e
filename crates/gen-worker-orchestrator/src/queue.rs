//! The queue of runs: a port. What becomes of a run is decided by [`record`], the same for every engine; an engine
//! stores that, and says which run is next.
//!
//! | engine | state | processes |
//! |---|---|---|
//! | [`embedded`] | this process's memory, and a file if one is named | one |
//! | `jetstream` | NATS servers | any number |
//!
//! One rule holds for all: what a method returns, others may be told. A run that was taken, a lease that was given and
//! a result that was settled are durable by then, as far as the engine is durable at all.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use gen_worker_proto::scheduler as v1;
use tokio::sync::watch;

use crate::{
    dispatch::Load,
    events::Batch,
    peers::Presence,
    run::{RunError, RunRequest, RunView},
};

#[cfg(test)]
mod conformance;
pub(crate) mod embedded;
pub(crate) mod fair;
#[cfg(feature = "nats")]
pub(crate) mod jetstream;
pub(crate) mod limits;
pub(crate) mod record;

/// Why a run is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its id names another request.
    Conflict,
    /// Its tenant has as many runs waiting as it may; it should not ask again before this.
    TenantFull { retry_after: Duration },
    /// There is no room for anybody's.
    Full { retry_after: Duration },
    /// It cannot be stored just now; whether it was is not known. Asking again with the same id is safe.
    Unavailable,
}

impl From<Unavailable> for Refusal {
    fn from(_: Unavailable) -> Self {
        Self::Unavailable
    }
}

/// What asking for a run's end did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Canceled {
    /// It had ended before.
    Ended,
    /// It waited, and has ended.
    Waiting,
    /// It runs; whoever has this attempt must be told.
    Running { attempt: i64 },
}

/// Whose files a token opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileScope {
    pub(crate) run_id: String,
    pub(crate) tenant_id: Option<String>,
}

/// A run that is a worker's for now.
#[derive(Debug)]
pub(crate) struct Lease {
    /// The session it was leased for.
    pub(crate) session: u64,
    /// What is sent to the worker, but for the address of the file API.
    pub(crate) request: v1::TaskExecutionRequest,
}

/// Runs of one function at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FunctionStats {
    pub(crate) waiting: usize,
    /// How long the run that has waited longest has been known; zero when none waits.
    pub(crate) oldest: Duration,
    pub(crate) running: usize,
}

/// The engine could not store or read something; nothing that depends on it may be told, and of a run that was asked
/// for it is not known whether it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue cannot be reached just now")]
pub(crate) struct Unavailable;

/// How a run ended: its output as MessagePack, or its error.
pub(crate) type Outcome = Result<Bytes, RunError>;

/// What a run said after an event, and the number of its end with how it stands, if it has ended.
pub(crate) type Heard = (Batch, Option<(u64, RunView)>);

/// A queue of runs. Every method may be dropped while it waits: what it asked for then happens or does not.
#[async_trait]
pub(crate) trait Queue: Debug + Send + Sync {
    /// Does what is to be done beside everything else, as long as the queue is used.
    async fn run(&self) {
        std::future::pending().await
    }

    /// Takes a run; true if it is new, false if the same was taken before.
    async fn enqueue(&self, run_id: &str, request: RunRequest) -> Result<bool, Refusal>;

    /// Leases runs that may start to workers that take them; there may be more when it has leased some. `workers` is charged for what is leased.
    async fn lease(&self, workers: &mut [Load]) -> Result<Vec<Lease>, Unavailable>;

    /// Waits until there may be something to lease that was not there before.
    async fn changed(&self);

    /// Waits for a run, and its attempt, that somebody at another process asked to stop.
    async fn interrupted(&self) -> (String, i64) {
        std::future::pending().await
    }

    /// Tells those who serve the same queue in other processes of this one. It may be lost.
    fn announce(&self, _presence: Presence) {}

    /// Waits for what one of them said of itself.
    async fn announced(&self) -> Presence {
        std::future::pending().await
    }

    /// Takes a worker's word that it has a run, and returns the run's function; `None`: the run is not its any more.
    async fn adopt(&self, active: &v1::ActiveRun, worker_id: &str) -> Result<Option<String>, Unavailable>;

    /// The worker that has these runs cannot be reached. It may come back and adopt them for a while; then others
    /// get them.
    async fn lose(&self, runs: Vec<(String, i64)>);

    /// Takes a result. `accepted`: the worker had admitted the run; a failure before that is a refusal. A stale result
    /// changes nothing, and is settled as well.
    async fn settle(
        &self,
        result: v1::TaskExecutionResult,
        worker_id: &str,
        accepted: bool,
    ) -> Result<(), Unavailable>;

    /// Asks for a run's end; `None`: there is no such run.
    async fn cancel(&self, run_id: &str) -> Result<Option<Canceled>, Unavailable>;

    /// Takes what a run says; it may be lost.
    fn event(&self, event: v1::WorkerEvent);

    /// A run as it stands, with its output; `None`: there is no such run.
    async fn view(&self, run_id: &str) -> Result<Option<RunView>, Unavailable>;

    /// The newest runs of a tenant, or of all if none is named, newest first, without their outputs: at most `limit`.
    async fn list(&self, tenant_id: Option<&str>, limit: usize) -> Result<Vec<RunView>, Unavailable>;

    /// How a run ended: its output as MessagePack, or its error. The outer `None`: there is no such run; the inner:
    /// it has not ended.
    async fn outcome(&self, run_id: &str) -> Result<Option<Option<Outcome>>, Unavailable>;

    /// A signal that a run said something or ended; `None`: there is no such run.
    async fn watch(&self, run_id: &str) -> Result<Option<watch::Receiver<()>>, Unavailable>;

    /// What a run said after an event, and the number of its end with how it stands, if it has ended; `None`: there is
    /// no such run.
    async fn events(&self, run_id: &str, after: u64) -> Result<Option<Heard>, Unavailable>;

    /// Whose files a token opens; `None`: none.
    async fn file_scope(&self, token: &str) -> Result<Option<FileScope>, Unavailable>;

    /// What waits and what runs, by function.
    async fn stats(&self) -> Result<BTreeMap<String, FunctionStats>, Unavailable>;

    /// Whether runs can be taken, as was seen last, some seconds ago at most. Nothing is asked or written for it.
    fn is_ready(&self) -> bool;

    /// Stores what is not stored yet, and lets go of what is held.
    async fn close(&self);
}
