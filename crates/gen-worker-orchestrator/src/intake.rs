//! Where runs come in, whichever way they were asked for: checked, completed, queued.

use std::{sync::Arc, time::Duration};

use gen_worker_core::{FunctionName, TenantId, UserId};
use uuid::Uuid;

use crate::{
    broker::Broker,
    queue::Refusal,
    run::{RetryPolicy, RunRequest},
};

/// Largest payload, in bytes of MessagePack: it travels in one message of at most 64 MiB.
pub(crate) const MAX_PAYLOAD: usize = 48 << 20;

/// Most models that a run may name, and the longest name.
const MAX_MODELS: usize = 64;
const MAX_MODEL: usize = 4096;

/// Why a run is not taken.
#[derive(Debug)]
pub(crate) enum IntakeError {
    Invalid(String),
    Refused(Refusal),
}

/// Takes runs in.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    pub(crate) broker: Arc<Broker>,
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
        let new = self.broker.submit(&run_id, request).await.map_err(IntakeError::Refused)?;
        Ok((run_id, new))
    }
}

fn check(run_id: &str, request: &RunRequest) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if run_id.is_empty() || run_id.len() > 128 || run_id.starts_with('.') || !run_id.chars().all(plain) {
        return Err("a run id has 1 to 128 letters, digits, `-`, `_` or `.`, and no `.` in front".to_owned());
    }
    FunctionName::parse(&request.function).map_err(|e| e.to_string())?;
    let tenant = request.tenant_id.as_deref().map(TenantId::parse);
    tenant.transpose().map_err(|e| e.to_string())?;
    let user = request.user_id.as_deref().map(UserId::parse);
    user.transpose().map_err(|e| e.to_string())?;
    if request.models.len() > MAX_MODELS || request.models.iter().any(|m| m.len() > MAX_MODEL) {
        return Err(format!("at most {MAX_MODELS} models of at most {MAX_MODEL} bytes can be required"));
    }
    if request.payload.len() > MAX_PAYLOAD {
        return Err(format!("the payload has more than {MAX_PAYLOAD} bytes"));
    }
    Ok(())
}
