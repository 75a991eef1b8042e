//! The kinds of places that models come from, and which of them a reference means.

pub(crate) mod api;
pub(crate) mod cozy;
pub(crate) mod direct;
pub(crate) mod hugging_face;
pub(crate) mod local;
pub(crate) mod manifest;

use gen_worker_core::{ModelRef, Secret, TraceContext};
use gen_worker_net::HttpClient;

use crate::{config::HubConfig, error::HubError, snapshot::Snapshot, source::cozy::Cozy};

/// Finds out what a model consists of and where its files are.
#[derive(Debug)]
pub(crate) struct Sources {
    config: HubConfig,
    client: HttpClient,
    cozy: Cozy,
}

/// Where a model is.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) snapshot: Snapshot,
    /// Whether the reference may lead elsewhere tomorrow.
    pub(crate) moves: bool,
    /// The kind of place, for those who watch.
    pub(crate) source: &'static str,
}

impl Sources {
    pub(crate) fn new(config: HubConfig, client: HttpClient) -> Self {
        Self { config, client, cozy: Cozy::default() }
    }

    /// Asks where a model is that is not on this machine, with the credential of its source.
    pub(crate) async fn resolve(
        &self,
        model: &ModelRef,
        token: Option<&Secret<String>>,
        trace: Option<&TraceContext>,
    ) -> Result<Resolved, HubError> {
        // A place that is not the operator's learns of no trace.
        let trace = trace.filter(|_| model.hub().is_some());
        let api = api::Api { client: &self.client, model, token, trace };
        if let Some(url) = model.url() {
            let snapshot = Snapshot { revision: None, files: vec![direct::url(url)] };
            return Ok(Resolved { snapshot, moves: false, source: "url" });
        }
        if let Some(repo) = model.hugging_face() {
            return hugging_face::resolve(&self.config, &api, repo).await;
        }
        let hub = model.hub().ok_or_else(|| HubError::NotFound { model: model.to_string() })?;
        self.cozy.resolve(&self.config, &api, hub).await
    }
}
