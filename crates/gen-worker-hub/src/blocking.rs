//! Work on files, on a thread that may block.

use tokio::task::spawn_blocking;

use crate::error::HubError;

/// Does the work and says how it went; a panic of it is an I/O error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HubError> + Send + 'static,
) -> Result<T, HubError> {
    spawn_blocking(work).await.map_err(std::io::Error::other)?
}
