//! A parameter of one's own.

use gen_worker::{CallParts, Extract, WorkerError};

/// Whose run it is.
pub(crate) struct Tenant(pub(crate) String);

impl Extract for Tenant {
    fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError> {
        Ok(Self(parts.context().tenant_id().unwrap_or("nobody").to_owned()))
    }
}
