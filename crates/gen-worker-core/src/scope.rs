//! What of a run the stores of files look at.

use url::Url;

use crate::{
    id::{RunId, TenantId},
    secret::Secret,
    trace::TraceContext,
};

/// Whose files a run may touch, and with which credential.
#[derive(Debug, Clone)]
pub struct RunScope {
    /// Which run; outputs lie under `runs/<run_id>/outputs/`.
    pub run_id: RunId,
    /// Whose run it is; `None`: not said.
    pub tenant_id: Option<TenantId>,
    /// The file API for this run; `None`: the worker's own.
    pub file_base_url: Option<Url>,
    /// The credential for `file_base_url`. It is used nowhere else, and no other credential is used there.
    pub file_token: Option<Secret<String>>,
    /// The place in a trace below which the run works, sent along to the hub and the file API; `None`: it belongs to none.
    pub trace: Option<TraceContext>,
}
