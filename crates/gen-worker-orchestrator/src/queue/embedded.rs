//! The engine within this process: all runs in memory, and in a file if one is named.

mod core;
mod journal;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use gen_worker_proto::scheduler as v1;
use tokio::{
    sync::{Notify, watch},
    time::sleep_until,
};
use tracing::info;

pub use self::journal::JournalError;
use self::{core::Core, journal::Journal};
use super::{
    Canceled, FileScope, FunctionStats, Heard, Lease, Outcome, Queue, Refusal, Unavailable,
    limits::TenantLimits, record::Record,
};
use crate::{
    auth::Now,
    dispatch::Load,
    run::{RunRequest, RunView},
};

/// The engine within this process.
#[derive(Debug)]
pub(crate) struct Embedded {
    core: Mutex<Core>,
    /// `None`: what is known is forgotten when the process ends.
    journal: Option<Journal>,
    changed: Notify,
    grace: Duration,
}

impl Embedded {
    /// Remembers `history` ended runs; a worker that was lost has `grace` to come back.
    pub(crate) fn in_memory(history: usize, limits: TenantLimits, grace: Duration) -> Self {
        let core = Mutex::new(Core::new(history, limits));
        Self { core, journal: None, changed: Notify::new(), grace }
    }

    /// The same, with all of it in a file, which is read now. It blocks.
    pub(crate) fn in_file(
        path: &Path,
        history: usize,
        limits: TenantLimits,
        grace: Duration,
    ) -> Result<Self, JournalError> {
        let (journal, stored) = Journal::open(path)?;
        let mut core = Core::new(history, limits);
        if !stored.is_empty() {
            info!(runs = stored.len(), path = %path.display(), "runs restored");
        }
        core.restore(stored, Now::read());
        // The history may have become shorter.
        journal.write(core.take_changes());
        Ok(Self { core: Mutex::new(core), journal: Some(journal), changed: Notify::new(), grace })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and returns what becomes true once that is durable.
    async fn change<T>(&self, change: impl FnOnce(&mut Core) -> T) -> Result<T, Unavailable> {
        let (value, written) = self.begin(change);
        self.durable(written).await?;
        Ok(value)
    }

    /// Changes the state; the second value is what becomes durable with it.
    fn begin<T>(&self, change: impl FnOnce(&mut Core) -> T) -> (T, Option<u64>) {
        let mut core = self.core();
        let value = change(&mut core);
        let changes = core.take_changes();
        // Within the lock, so that the file is told in the order in which things happened.
        (value, self.journal.as_ref().map(|journal| journal.write(changes)))
    }

    async fn durable(&self, written: Option<u64>) -> Result<(), Unavailable> {
        match (&self.journal, written) {
            (Some(journal), Some(written)) => journal.durable(written).await,
            _ => Ok(()),
        }
    }

    /// Reads what may be told: all that has happened so far is durable.
    async fn read<T>(&self, read: impl FnOnce(&Core) -> Option<T>) -> Option<T> {
        let (value, written) = {
            let core = self.core();
            (read(&core)?, self.journal.as_ref().map(Journal::written))
        };
        // What cannot be stored is shown all the same: readers see what this process knows.
        let _ = self.durable(written).await;
        Some(value)
    }
}

#[async_trait]
impl Queue for Embedded {
    async fn enqueue(&self, run_id: &str, request: RunRequest) -> Result<bool, Refusal> {
        let taken = self.change(|core| {
            let taken = core.enqueue(run_id, request, Now::read());
            self.changed.notify_one();
            taken
        });
        taken.await.unwrap_or(Err(Refusal::Unavailable))
    }

    async fn lease(&self, workers: &mut [Load]) -> Result<Vec<Lease>, Unavailable> {
        let now = Now::read();
        let (leases, written) = self.begin(|core| {
            core.expire(self.grace, now);
            core.lease(workers, now)
        });
        if let Err(unavailable) = self.durable(written).await {
            // No worker hears of them, so none will ever report them.
            let unheard = leases.into_iter().map(|lease| (lease.request.run_id, lease.request.attempt));
            self.lose(unheard.collect()).await;
            return Err(unavailable);
        }
        Ok(leases)
    }

    async fn changed(&self) {
        let next = self.core().next_change(self.grace);
        tokio::select! {
            () = self.changed.notified() => {}
            () = sleep_until(next.unwrap_or_else(tokio::time::Instant::now)), if next.is_some() => {}
        }
    }

    async fn adopt(&self, active: &v1::ActiveRun, worker_id: &str) -> Result<Option<String>, Unavailable> {
        Ok(self.core().adopt(active, worker_id))
    }

    async fn lose(&self, runs: Vec<(String, i64)>) {
        let now = Now::read();
        let mut core = self.core();
        for (run_id, attempt) in runs {
            core.lose(&run_id, attempt, now.at);
        }
        self.changed.notify_one();
    }

    async fn settle(
        &self,
        result: v1::TaskExecutionResult,
        worker_id: &str,
        accepted: bool,
    ) -> Result<(), Unavailable> {
        self.change(|core| {
            core.settle(result, worker_id, accepted, Now::read());
            self.changed.notify_one();
        })
        .await
    }

    async fn cancel(&self, run_id: &str) -> Result<Option<Canceled>, Unavailable> {
        self.change(|core| core.cancel(run_id, Now::read())).await
    }

    fn event(&self, event: v1::WorkerEvent) {
        self.core().event(event);
    }

    async fn view(&self, run_id: &str) -> Result<Option<RunView>, Unavailable> {
        Ok(self.read(|core| core.get(run_id).map(|(record, output)| record.view(output))).await)
    }

    async fn list(&self, tenant_id: Option<&str>, limit: usize) -> Result<Vec<RunView>, Unavailable> {
        Ok(self.read(|core| Some(core.list(tenant_id, limit))).await.unwrap_or_default())
    }

    async fn outcome(&self, run_id: &str) -> Result<Option<Option<Outcome>>, Unavailable> {
        Ok(self.read(|core| core.get(run_id).map(|(record, output)| record.outcome(output))).await)
    }

    async fn watch(&self, run_id: &str) -> Result<Option<watch::Receiver<()>>, Unavailable> {
        Ok(self.core().log(run_id).map(|log| log.watch()))
    }

    async fn events(&self, run_id: &str, after: u64) -> Result<Option<Heard>, Unavailable> {
        let heard = self.read(|core| {
            let (log, (record, output)) = (core.log(run_id)?, core.get(run_id)?);
            let end = record.has_ended().then(|| (log.last_id() + 1, record.view(output)));
            Some((log.after(after), end))
        });
        Ok(heard.await)
    }

    async fn file_scope(&self, token: &str) -> Result<Option<FileScope>, Unavailable> {
        let core = self.core();
        let known = Record::run_of_token(token).and_then(|run_id| core.get(run_id));
        Ok(known.and_then(|(record, _)| record.file_scope(token, Now::read().unix_ms)))
    }

    async fn stats(&self) -> Result<BTreeMap<String, FunctionStats>, Unavailable> {
        Ok(self.core().stats(Now::read().unix_ms))
    }

    fn is_ready(&self) -> bool {
        self.journal.as_ref().is_none_or(Journal::can_write)
    }

    async fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::queue::conformance::{GRACE, conformance, worker};

    mod in_memory {
        use super::*;

        async fn open() -> (Arc<dyn Queue>, ()) {
            (Arc::new(Embedded::in_memory(1000, TenantLimits::default(), GRACE)), ())
        }

        conformance!(open());
    }

    mod in_file {
        use super::*;

        async fn open() -> (Arc<dyn Queue>, tempfile::TempDir) {
            let folder = tempfile::tempdir().unwrap();
            (Arc::new(reopened(folder.path(), 1000).unwrap()), folder)
        }

        conformance!(open());
    }

    fn reopened(folder: &Path, history: usize) -> Result<Embedded, JournalError> {
        Embedded::in_file(&folder.join("runs.redb"), history, TenantLimits::default(), GRACE)
    }

    #[tokio::test]
    async fn a_file_is_read_by_one_process_at_a_time_and_gives_back_all_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let first = reopened(folder.path(), 2).unwrap();
        for run_id in ["a", "b", "c", "d"] {
            first.enqueue(run_id, RunRequest::of("f")).await.unwrap();
        }
        for run_id in ["a", "b", "c"] {
            first.cancel(run_id).await.unwrap();
        }
        assert!(matches!(reopened(folder.path(), 2), Err(JournalError::InUse)));
        let before = first.list(None, 9).await;
        first.close().await;
        let second = reopened(folder.path(), 2).unwrap();
        assert_eq!(second.list(None, 9).await, before);
        assert_eq!(second.enqueue("d", RunRequest::of("f")).await, Ok(false));
        assert_eq!(second.enqueue("d", RunRequest::of("g")).await, Err(Refusal::Conflict));
        assert_eq!(second.view("a").await, Ok(None));
    }

    #[tokio::test]
    async fn what_is_no_such_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runs.redb");
        std::fs::write(&path, "something else").unwrap();
        assert!(matches!(reopened(folder.path(), 2), Err(JournalError::Storage(_) | JournalError::Io(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"something else");
    }

    #[tokio::test]
    async fn nothing_is_promised_that_cannot_be_stored() {
        let folder = tempfile::tempdir().unwrap();
        let queue = reopened(folder.path(), 2).unwrap();
        assert!(queue.is_ready());
        queue.close().await;
        assert!(!queue.is_ready());
        assert_eq!(queue.enqueue("r", RunRequest::of("f")).await, Err(Refusal::Unavailable));
    }

    #[tokio::test]
    async fn a_run_that_could_not_be_handed_out_is_given_up_like_a_lost_one() {
        let folder = tempfile::tempdir().unwrap();
        let queue = reopened(folder.path(), 2).unwrap();
        queue.enqueue("r", RunRequest::of("f")).await.unwrap();
        queue.close().await;
        assert!(queue.lease(&mut [worker(1, 1)]).await.is_err());
        assert!(queue.core().next_change(GRACE).is_some(), "nobody waits for a worker that has it");
    }
}
