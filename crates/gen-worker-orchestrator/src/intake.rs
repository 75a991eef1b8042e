//! Where runs come in, whichever way they were asked for: checked, completed, queued.

use std::{sync::Arc, time::Duration};

use gen_worker_core::{Algorithm, Digest, FunctionName, TenantId, UserId};
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

/// What the ids begin with that are made of keys.
const KEYED: &str = "key-";

/// How a run gets its id.
#[derive(Debug)]
pub(crate) enum Naming {
    /// We choose one.
    Ours,
    /// The caller chose it.
    Chosen(String),
    /// It follows from a text that the caller chose, so there is nothing to remember beside the run.
    Keyed(String),
}

impl Naming {
    /// By a key, which is the caller's own: those of others never meet it.
    pub(crate) fn by_key(caller: &Caller, key: &str) -> Self {
        let owner = caller.tenant().unwrap_or_default();
        let digest = Digest::of(Algorithm::Sha256, format!("{owner}\0{key}").as_bytes()).hex();
        Self::Keyed(format!("{KEYED}{}", &digest[..32]))
    }

    fn id(self) -> Result<String, String> {
        match self {
            Self::Ours => Ok(Uuid::new_v4().to_string()),
            Self::Keyed(run_id) => Ok(run_id),
            Self::Chosen(run_id) if run_id.starts_with(KEYED) => Err(format!(
                "a run id that begins with `{KEYED}` is made of an `Idempotency-Key`: choose another one"
            )),
            Self::Chosen(run_id) => check_id(&run_id).map(|()| run_id),
        }
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
        naming: Naming,
        mut request: RunRequest,
    ) -> Result<(String, bool), IntakeError> {
        let run_id = naming.id().map_err(IntakeError::Invalid)?;
        check(&request).map_err(IntakeError::Invalid)?;
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
    pub(crate) async fn knows(&self, caller: &Caller, run_id: &str) -> Result<bool, Unavailable> {
        Ok(match caller {
            // Whatever is asked of the run next finds that out.
            Caller::Operator => true,
            Caller::Tenant(_) => {
                self.broker.view(run_id).await?.is_some_and(|run| caller.sees(run.tenant_id.as_deref()))
            }
        })
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
        if !self.knows(caller, run_id).await? {
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

/// Whether an id can name something.
pub(crate) fn check_id(run_id: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if run_id.is_empty() || run_id.len() > 128 || run_id.starts_with('.') || !run_id.chars().all(plain) {
        return Err("a run id has 1 to 128 letters, digits, `-`, `_` or `.`, and no `.` in front".to_owned());
    }
    Ok(())
}

fn check(request: &RunRequest) -> Result<(), String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_one_run_of_one_caller() {
        let tenant = |name: &str| Caller::Tenant(name.to_owned());
        let keyed = |caller: Caller, key: &str| Naming::by_key(&caller, key).id().unwrap();
        let ids = [keyed(Caller::Operator, "k"), keyed(tenant("a"), "k"), keyed(tenant("b"), "k")];
        assert_eq!(ids[1], keyed(tenant("a"), "k"));
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != keyed(Caller::Operator, "l"));
        let chosen = |run_id: &str| Naming::Chosen(run_id.to_owned()).id();
        assert!(chosen(&ids[0]).is_err() && chosen("key-").is_err() && chosen("a b").is_err());
        assert_eq!(chosen("keys").as_deref(), Ok("keys"));
    }
}
