//! Where runs come in, whichever way they were asked for: checked, completed, queued.

use std::{sync::Arc, time::Duration};

use gen_worker_core::{FunctionName, TenantId, UserId};
use tokio::task::spawn_blocking;
use tracing::error;
use uuid::Uuid;

use crate::{
    auth::Caller,
    broker::Broker,
    queue::{Canceled, Refusal, Unavailable},
    run::{RetryPolicy, RunRequest},
    tombstones::Tombstones,
};

/// Largest payload, in bytes of MessagePack: it travels in one message of at most 64 MiB.
pub(crate) const MAX_PAYLOAD: usize = 48 << 20;

/// Most models that a run may name, and the longest name.
const MAX_MODELS: usize = 64;
const MAX_MODEL: usize = 4096;

/// Most types of errors that a run may name as final, and the longest name.
const MAX_KINDS: usize = 64;
const MAX_KIND: usize = 128;

/// Why a run is not taken.
#[derive(Debug)]
pub(crate) enum IntakeError {
    Invalid(String),
    Refused(Refusal),
    /// It was told to stop before it was asked for.
    Canceled,
    /// What must outlive the process could not be stored.
    NotStored,
}

impl From<Unavailable> for IntakeError {
    fn from(_: Unavailable) -> Self {
        Self::Refused(Refusal::Unavailable)
    }
}

/// Takes runs in.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    pub(crate) broker: Arc<Broker>,
    pub(crate) tombstones: Arc<Tombstones>,
    pub(crate) max_attempts: u32,
    pub(crate) timeout: Option<Duration>,
}

impl Intake {
    /// How often and when a run is tried again, if it does not say.
    pub(crate) fn retry(&self) -> RetryPolicy {
        RetryPolicy::new(self.max_attempts)
    }

    /// Queues a run and returns its id, and whether it is new.
    pub(crate) async fn submit(
        &self,
        run_id: Option<String>,
        mut request: RunRequest,
    ) -> Result<(String, bool), IntakeError> {
        let run_id = run_id.unwrap_or_else(|| Uuid::new_v4().to_string());
        check(&run_id, &request).map_err(IntakeError::Invalid)?;
        request.timeout = request.timeout.filter(|t| !t.is_zero()).or(self.timeout);
        let tenant_id = request.tenant_id.clone();
        let unwanted = || self.tombstones.cover(&run_id, tenant_id.as_deref());
        if unwanted() {
            return Err(IntakeError::Canceled);
        }
        let new = self.broker.submit(&run_id, request).await.map_err(IntakeError::Refused)?;
        // A cancel that came between the two does not know the run. Either it finds the run, or we its tombstone.
        if new && unwanted() {
            self.broker.cancel(&run_id).await?;
        }
        Ok((run_id, new))
    }

    /// Whether there is such a run for the caller. Another tenant's run is as unknown as one that is not there.
    pub(crate) async fn knows(&self, caller: &Caller, run_id: &str) -> bool {
        match caller {
            // Whatever is asked of the run next finds that out.
            Caller::Operator => true,
            Caller::Tenant(_) => {
                self.broker.view(run_id).await.is_some_and(|run| caller.sees(run.tenant_id.as_deref()))
            }
        }
    }

    /// Asks for a run's end; `None`: there is no such run, and there will be none.
    pub(crate) async fn cancel(
        &self,
        caller: &Caller,
        run_id: &str,
    ) -> Result<Option<Canceled>, IntakeError> {
        check_id(run_id).map_err(IntakeError::Invalid)?;
        if let Some(canceled) = self.ask_for_end(caller, run_id).await? {
            return Ok(Some(canceled));
        }
        self.bury(caller, run_id).await?;
        // It may have been asked for meanwhile, before the tombstone could be seen.
        self.ask_for_end(caller, run_id).await
    }

    async fn ask_for_end(&self, caller: &Caller, run_id: &str) -> Result<Option<Canceled>, IntakeError> {
        if !self.knows(caller, run_id).await {
            return Ok(None);
        }
        Ok(self.broker.cancel(run_id).await?)
    }

    async fn bury(&self, caller: &Caller, run_id: &str) -> Result<(), IntakeError> {
        let tombstones = Arc::clone(&self.tombstones);
        let (run_id, tenant_id) = (run_id.to_owned(), caller.tenant().map(str::to_owned));
        let put = spawn_blocking(move || tombstones.put(&run_id, tenant_id.as_deref()));
        match put.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                error!(%error, "a cancel could not be stored");
                Err(IntakeError::NotStored)
            }
            Err(_) => Err(IntakeError::NotStored),
        }
    }
}

fn check_id(run_id: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if run_id.is_empty() || run_id.len() > 128 || run_id.starts_with('.') || !run_id.chars().all(plain) {
        return Err("a run id has 1 to 128 letters, digits, `-`, `_` or `.`, and no `.` in front".to_owned());
    }
    Ok(())
}

fn check(run_id: &str, request: &RunRequest) -> Result<(), String> {
    check_id(run_id)?;
    FunctionName::parse(&request.function).map_err(|e| e.to_string())?;
    let tenant = request.tenant_id.as_deref().map(TenantId::parse);
    tenant.transpose().map_err(|e| e.to_string())?;
    let user = request.user_id.as_deref().map(UserId::parse);
    user.transpose().map_err(|e| e.to_string())?;
    if request.models.len() > MAX_MODELS || request.models.iter().any(|m| m.len() > MAX_MODEL) {
        return Err(format!("at most {MAX_MODELS} models of at most {MAX_MODEL} bytes can be required"));
    }
    let kinds = &request.retry.final_kinds;
    if kinds.len() > MAX_KINDS || kinds.iter().any(|kind| kind.len() > MAX_KIND) {
        return Err(format!(
            "at most {MAX_KINDS} types of errors of at most {MAX_KIND} bytes can be named as final"
        ));
    }
    if request.payload.len() > MAX_PAYLOAD {
        return Err(format!("the payload has more than {MAX_PAYLOAD} bytes"));
    }
    Ok(())
}
