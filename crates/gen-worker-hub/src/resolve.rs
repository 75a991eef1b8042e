//! Where a model ref leads.

use std::path::PathBuf;

use gen_worker_core::ModelRef;

use crate::{
    config::HubConfig,
    error::HubError,
    source::direct::{self, Remote},
};

/// Where a model is.
#[derive(Debug)]
pub(crate) enum Origin {
    /// On this machine, for good.
    Local(PathBuf),
    /// One file on a server.
    Remote(Remote),
}

/// Finds out where a model is.
pub(crate) fn resolve(config: &HubConfig, model: &ModelRef) -> Result<Origin, HubError> {
    if let Some(path) = model.file() {
        return Ok(Origin::Local(path.to_owned()));
    }
    let remote = match (model.url(), model.hub_path()) {
        (Some(url), _) => direct::url(url),
        (None, Some(path)) => direct::hub(config, model, &path)?,
        (None, None) => return Err(HubError::NotFound { model: model.to_string() }),
    };
    Ok(Origin::Remote(remote))
}
