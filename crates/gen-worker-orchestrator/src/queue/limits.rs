//! How much of the queue one tenant may have.

use std::time::Duration;

use super::fair::Weights;

/// Most runs that wait or run.
pub(crate) const MAX_OPEN: usize = 10_000;

/// When a submitter that was refused should ask again: about as long as it takes for a few runs to end.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How much of the queue one tenant may have. A run without a tenant belongs to one without a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TenantLimits {
    /// Most runs of one tenant that wait; `None`: no limit but that of all.
    pub max_queued: Option<usize>,
    /// Most runs of one tenant that run at once; `None`: no limit.
    pub max_running: Option<usize>,
    /// The tenants' shares of the workers when all have runs waiting; a tenant that is not named has 1.
    pub tenant_weights: Weights,
    /// The functions' shares of what their tenant gets; a function that is not named has 1.
    pub function_weights: Weights,
}
