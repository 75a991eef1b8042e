//! The only wiring: settings become the ports of a worker.

use std::{io::IsTerminal, sync::Arc};

use gen_worker_auth::AuthError;
use gen_worker_core::ports::{Measured, ModelManager, Observer, Tracer};
use gen_worker_hub::Hub;
#[cfg(feature = "ort")]
use gen_worker_models_ort::{ModelError, OrtModels};
use gen_worker_net::{HttpClient, NetError};
use gen_worker_runtime::Ports;
use gen_worker_status::{Status, StatusError};
use gen_worker_upload::{FileApi, OutputTargets, Transfers};

use crate::{
    __private::{Function, ManagerRegistration},
    backlog::LogMeter,
    config::WorkerConfig,
};

/// Why a worker cannot be put together.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssembleError {
    /// The worker's token was refused before any dial, or there is none in its file.
    #[error("the worker has no token that it may use")]
    Auth(#[from] AuthError),
    /// HTTP cannot be set up.
    #[error("HTTP cannot be set up")]
    Http(#[from] NetError),
    /// A function needs a model in memory, and what runs models is missing.
    #[cfg(feature = "ort")]
    #[error(transparent)]
    Models(#[from] ModelError),
    /// `MODEL_MANAGER_CLASS` names none of the model managers that are linked in.
    #[error("MODEL_MANAGER_CLASS is `{asked}`: expected {known}")]
    UnknownManager {
        /// What it names.
        asked: String,
        /// The Rust paths of those that there are, or how to register one.
        known: String,
    },
    /// Traces cannot be sent.
    #[cfg(feature = "otel")]
    #[error(transparent)]
    Traces(#[from] crate::otel::OtelError),
    /// Health and metrics cannot be served.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The operating system gave no threads.
    #[error("cannot start a thread")]
    Threads(#[from] std::io::Error),
}

/// Joins the crates into the ports of a worker that serves `functions`. Blocks while the token is verified.
///
/// # Errors
/// The token is refused; or `MODEL_MANAGER_CLASS` names no manager; or a function needs ONNX Runtime and it cannot be loaded.
///
/// # Panics
/// It was called from async code.
pub fn assemble(config: &WorkerConfig, functions: &[Function]) -> Result<Ports, AssembleError> {
    let credential = verified(config)?;
    let client = HttpClient::new(config.net.clone())?;
    let tracer = tracer(config)?;
    let hub = gen_worker_hub::HubConfig { show_bars: std::io::stderr().is_terminal(), ..config.hub.clone() };
    let hub = Arc::new(Hub::new(hub, client.clone()));
    let transfers = Transfers::new(&config.upload, client);
    let measured: Vec<Arc<dyn Measured>> = vec![hub.clone(), Arc::new(transfers.clone()), Arc::new(LogMeter)];
    let status = Status::open(&config.status, measured)?;
    Ok(Ports {
        files: Arc::new(FileApi::new(config.upload.clone(), transfers.clone())),
        inputs: hub.clone(),
        outputs: Arc::new(OutputTargets::new(&config.upload, transfers)),
        model_source: Some(hub),
        model_manager: match &config.model_manager {
            Some(path) => Some(registered_manager(path)?),
            None => model_manager(config, functions)?,
        },
        credential: Arc::new(credential),
        observer: status.map(|status| Arc::new(status) as Arc<dyn Observer>),
        tracer,
    })
}

/// Spans are sent with a client of their own, by the runtime of their own: pooled connections end with the runtime that made them, and
/// the last spans are sent when the others are gone.
#[cfg(feature = "otel")]
fn tracer(config: &WorkerConfig) -> Result<Option<Arc<dyn Tracer>>, AssembleError> {
    let Some(endpoint) = &config.otel.endpoint else { return Ok(None) };
    let client = HttpClient::new(config.net.clone())?;
    let traces = crate::otel::Traces::open(endpoint, &config.otel, &config.runtime.worker_id, client)?;
    Ok(Some(Arc::new(traces)))
}

#[cfg(not(feature = "otel"))]
fn tracer(config: &WorkerConfig) -> Result<Option<Arc<dyn Tracer>>, AssembleError> {
    if config.otel.endpoint.is_some() {
        tracing::warn!("no traces are sent: this worker was built without the feature `otel`");
    }
    Ok(None)
}

/// The keys are fetched with a client and a runtime of their own: pooled connections end with the runtime that made them.
fn verified(config: &WorkerConfig) -> Result<gen_worker_auth::Credential, AssembleError> {
    let client = HttpClient::new(config.net.clone())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(gen_worker_auth::check(config.auth.clone(), &client))?)
}

fn registered_manager(asked: &str) -> Result<Arc<dyn ModelManager>, AssembleError> {
    let all = || inventory::iter::<ManagerRegistration>.into_iter();
    if let Some(found) = all().find(|manager| (manager.path)() == asked) {
        return Ok((found.make)());
    }
    let mut known: Vec<_> = all().map(|manager| format!("`{}`", (manager.path)())).collect();
    known.sort();
    let known = match known.is_empty() {
        true => "a type that is registered with `register_model_manager!`, and none is".to_owned(),
        false => known.join(" or "),
    };
    Err(AssembleError::UnknownManager { asked: asked.to_owned(), known })
}

/// ONNX Runtime is loaded at start, and only if a function needs it: a worker that cannot run its models must say so before
/// it takes the first run.
#[cfg(feature = "ort")]
fn model_manager(
    config: &WorkerConfig,
    functions: &[Function],
) -> Result<Option<Arc<dyn ModelManager>>, AssembleError> {
    use gen_worker_core::ModelNeed;

    let wanted = functions.iter().flat_map(|f| &f.spec().injections).any(|i| i.need == ModelNeed::Resident);
    if wanted { Ok(Some(Arc::new(OrtModels::new(config.ort.clone())?))) } else { Ok(None) }
}

#[cfg(not(feature = "ort"))]
fn model_manager(
    _config: &WorkerConfig,
    _functions: &[Function],
) -> Result<Option<Arc<dyn ModelManager>>, AssembleError> {
    Ok(None)
}
