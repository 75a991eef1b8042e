//! What of ONNX Runtime works on this machine, for whoever looks for a fault.

use std::path::PathBuf;

use crate::{
    config::{OrtConfig, Provider},
    error::ModelError,
    library, session,
};

/// What was found.
#[derive(Debug)]
pub struct Survey {
    /// The library's file, or its name if that was left to the system's loader.
    pub library: PathBuf,
    /// What the library says of itself; `None`: nothing.
    pub version: Option<String>,
    /// Whether a session runs on each provider that the settings name; none named: on the processor.
    pub providers: Vec<(Provider, Result<(), ModelError>)>,
}

/// Loads the library as a worker does, and makes a session of a small graph for each provider. Blocks for as long as that takes,
/// which is seconds where a driver is to be woken.
///
/// # Errors
/// The library is missing or cannot be used.
pub fn survey(config: &OrtConfig) -> Result<Survey, ModelError> {
    let library = library::find(config.dylib.as_deref())?;
    let engine = library::load(Some(&library))?;
    let wanted = if config.providers.is_empty() { &[Provider::Cpu][..] } else { &config.providers };
    let tried = |provider: &Provider| (*provider, session::try_out(&engine, *provider));
    Ok(Survey { library, providers: wanted.iter().map(tried).collect(), version: engine.version.clone() })
}
