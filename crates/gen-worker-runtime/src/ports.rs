//! What the worker was given to reach the outside world; what was not given is answered with a clear refusal.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use gen_worker_core::{
    Asset, AssetRef, Classify, FailureKind, JobFailure, LocalFile, RunScope, Secret,
    ports::{
        CredentialSource, FileStore, InputSource, ModelManager, ModelSource, Observer, OutputStore,
        OutputTarget, SaveRequest, Tracer, Watch,
    },
};

/// The worker's connections to the outside, joined by the facade.
#[derive(Clone)]
pub struct Ports {
    /// Stores what runs save.
    pub files: Arc<dyn FileStore>,
    /// Fetches the files that payloads name.
    pub inputs: Arc<dyn InputSource>,
    /// Stores whole outputs where a payload says.
    pub outputs: Arc<dyn OutputStore>,
    /// Makes models present on disk; `None`: functions that need a model fail with `validation`.
    pub model_source: Option<Arc<dyn ModelSource>>,
    /// Brings models into memory; `None`: models are files on disk.
    pub model_manager: Option<Arc<dyn ModelManager>>,
    /// The bearer token for the scheduler.
    pub credential: Arc<dyn CredentialSource>,
    /// Watches the worker; `None`: nobody does.
    pub observer: Option<Arc<dyn Observer>>,
    /// Is shown runs; `None`: they only pass on the trace that the scheduler named.
    pub tracer: Option<Arc<dyn Tracer>>,
}

impl Default for Ports {
    /// No outside world: nothing can be saved, fetched or stored, and the scheduler is dialled without a token.
    fn default() -> Self {
        let nothing = Arc::new(Nothing);
        Self {
            files: nothing.clone(),
            inputs: nothing.clone(),
            outputs: nothing.clone(),
            model_source: None,
            model_manager: None,
            credential: nothing,
            observer: None,
            tracer: None,
        }
    }
}

/// A port was not given.
#[derive(Debug, thiserror::Error)]
#[error("this worker was built without {what}")]
struct NotGiven {
    what: &'static str,
}

impl Classify for NotGiven {
    fn kind(&self) -> FailureKind {
        FailureKind::Validation
    }

    fn safe_message(&self) -> String {
        self.to_string()
    }
}

struct Nothing;

#[async_trait]
impl FileStore for Nothing {
    fn has_place(&self, _: &RunScope) -> bool {
        false
    }

    async fn save(&self, _: &RunScope, _: SaveRequest, _: &Watch) -> Result<Asset, JobFailure> {
        Err(NotGiven { what: "a file store" }.into())
    }
}

#[async_trait]
impl InputSource for Nothing {
    async fn fetch(&self, _: &RunScope, _: &AssetRef, _: &Path) -> Result<LocalFile, JobFailure> {
        Err(NotGiven { what: "a source of input files" }.into())
    }
}

impl OutputStore for Nothing {
    fn target(&self, _output_upload: Secret<String>) -> Result<Arc<dyn OutputTarget>, JobFailure> {
        Err(NotGiven { what: "a store for `output_upload`" }.into())
    }
}

#[async_trait]
impl CredentialSource for Nothing {
    fn bearer(&self) -> Option<Secret<String>> {
        None
    }

    async fn refresh(&self, _token: Secret<String>) -> Result<(), JobFailure> {
        Err(NotGiven { what: "a place for tokens" }.into())
    }
}
