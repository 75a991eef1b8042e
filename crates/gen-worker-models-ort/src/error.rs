//! Why a model cannot be loaded or run, and what is said of it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use gen_worker_core::{Classify, FailureKind, ModelRef};

use crate::config::{self, Provider};

/// The files that a model is made of.
const NEEDED: &str = "one .onnx file, or one named model.onnx, or one such in a folder for each session";

/// The setting of the longest wait.
const WAIT: &str = config::WAIT.name;

/// Why a model cannot be loaded or run.
///
/// A payload can choose the model, so a file that is no model and inputs that do not fit it are `validation`. What is
/// wrong with the machine's set-up is `internal`; the worker finds that at its start and refuses to run.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// There is no library where it is looked for.
    #[error(
        "ONNX Runtime was not found: run `gen-worker ort install`, or set ORT_DYLIB_PATH to libonnxruntime 1.17 or newer"
    )]
    LibraryMissing,
    /// There is a file, but not a library that can be used.
    #[error("ONNX Runtime cannot be loaded from {}: set ORT_DYLIB_PATH to libonnxruntime 1.17 or newer", path.display())]
    LibraryUnusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Arc<ort::LoadDynamicError>,
    },
    /// The library does not start.
    #[error("ONNX Runtime cannot start")]
    Environment {
        /// What it says.
        source: Arc<ort::Error>,
    },
    /// None of the providers that were asked for works here.
    #[error("ONNX Runtime cannot use {provider} on this machine")]
    ProviderMissing {
        /// The last that was tried.
        provider: Provider,
        /// What the library says.
        source: Arc<ort::Error>,
    },
    /// It is not clear which of the model's files to load.
    #[error("model {model} needs {NEEDED}; it has {files}")]
    Files {
        /// The model's reference.
        model: String,
        /// Its files, joined with commas.
        files: String,
    },
    /// The file is damaged, no ONNX model, or one that this library cannot run.
    #[error("model {model} cannot be loaded")]
    Load {
        /// The model's reference.
        model: String,
        /// What the library says.
        source: Arc<ort::Error>,
    },
    /// Memory ran out while a model was loaded or run.
    #[error("out of memory")]
    OutOfMemory {
        /// What the library says.
        source: Arc<ort::Error>,
    },
    /// It takes more memory than models may take here.
    #[error("model {model} takes {needed}; this worker has {budget} for models: raise {setting}")]
    TooLarge {
        /// The model's reference.
        model: String,
        /// What it takes, as far as is known before it is loaded.
        needed: String,
        /// What all models together may take.
        budget: String,
        /// The settings of what is short.
        setting: &'static str,
    },
    /// It takes more memory than is left beside the models that the same run has leased.
    #[error(
        "model {model} takes {needed} beside the {held} of the run's other models; this worker has {budget} for models: raise \
        {setting}"
    )]
    BesideOwn {
        /// The model's reference.
        model: String,
        /// What it takes, as far as is known before it is loaded.
        needed: String,
        /// What the run has leased.
        held: String,
        /// What all models together may take.
        budget: String,
        /// The settings of what is short.
        setting: &'static str,
    },
    /// It did not come into memory, or out of it, in all the time that is waited for that.
    #[error("model {model} was waited for in vain for {waited:?}: {WAIT} says how long to wait")]
    Waited {
        /// The model's reference.
        model: String,
        /// How long.
        waited: Duration,
    },
    /// It is to be unloaded, and runs hold it or wait for it.
    #[error("model {model} is in use by {users}")]
    InUse {
        /// The model's reference.
        model: String,
        /// The runs' ids, joined with commas.
        users: String,
    },
    /// The model has no session of this name, or several and none is named.
    #[error("the model has the sessions {has}; the call names {asked}")]
    Session {
        /// What was asked for.
        asked: String,
        /// The names that it has, joined with commas.
        has: String,
    },
    /// The inputs of a call are not those of the model.
    #[error("the model takes {expected}; the call gives {given}")]
    Inputs {
        /// The names, or the name and type, that the model has.
        expected: String,
        /// What it was given in their place.
        given: String,
    },
    /// The model has no such output.
    #[error("the model gives {given}; the call takes {expected}")]
    Outputs {
        /// What was asked for.
        expected: String,
        /// What the model gives.
        given: String,
    },
    /// The model does not run with these inputs.
    #[error("the model cannot be run")]
    Run {
        /// What the library says.
        source: Arc<ort::Error>,
    },
    /// The model's thread cannot be started.
    #[error("a thread for the model cannot be started")]
    Thread {
        /// What the system says.
        source: Arc<std::io::Error>,
    },
    /// A binding was asked to carry what it cannot.
    #[error("the binding cannot carry {from} to {to}: {reason}")]
    Binding {
        /// The output.
        from: String,
        /// The input.
        to: String,
        /// Why not.
        reason: &'static str,
    },
    /// A load or a call ended with a panic.
    #[error("a panic while a model was loaded or run")]
    Panicked,
}

impl ModelError {
    /// The error of a load.
    pub(crate) fn load(model: &ModelRef, source: ort::Error) -> Self {
        if is_out_of_memory(source.message()) {
            return Self::OutOfMemory { source: source.into() };
        }
        Self::Load { model: model.to_string(), source: source.into() }
    }

    /// The error of a call.
    pub(crate) fn run(source: ort::Error) -> Self {
        if is_out_of_memory(source.message()) {
            return Self::OutOfMemory { source: source.into() };
        }
        Self::Run { source: source.into() }
    }
}

impl Classify for ModelError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Files { .. }
            | Self::Load { .. }
            | Self::Session { .. }
            | Self::Inputs { .. }
            | Self::Outputs { .. }
            | Self::Binding { .. } => FailureKind::Validation,
            Self::OutOfMemory { .. } | Self::TooLarge { .. } | Self::BesideOwn { .. } => {
                FailureKind::Resource
            }
            Self::Waited { .. } | Self::InUse { .. } => FailureKind::Retryable,
            Self::Run { source } if source.code() == ort::ErrorCode::InvalidArgument => {
                FailureKind::Validation
            }
            Self::LibraryMissing
            | Self::LibraryUnusable { .. }
            | Self::Environment { .. }
            | Self::ProviderMissing { .. }
            | Self::Run { .. }
            | Self::Thread { .. }
            | Self::Panicked => FailureKind::Internal,
        }
    }

    fn safe_message(&self) -> String {
        match self {
            Self::OutOfMemory { .. } => "out of memory".into(),
            Self::Files { files, .. } => {
                format!("the model needs {NEEDED}; it has {files}")
            }
            Self::Load { source, .. } => format!("the model cannot be loaded: {}", cause_of(source)),
            Self::TooLarge { needed, budget, setting, .. } => {
                format!("the model takes {needed}; this worker has {budget} for models: raise {setting}")
            }
            Self::BesideOwn { needed, held, budget, setting, .. } => format!(
                "the model takes {needed} beside the {held} of the run's other models; this worker has {budget} for models: \
                raise {setting}"
            ),
            Self::Waited { waited, .. } => format!(
                "no room for the model in {waited:?}: others are in use; {WAIT} says how long to wait"
            ),
            Self::InUse { users, .. } => format!("the model is in use by {users}"),
            Self::Session { .. } | Self::Inputs { .. } | Self::Outputs { .. } | Self::Binding { .. } => {
                self.to_string()
            }
            Self::Run { .. } => "the model cannot be run with these inputs".into(),
            Self::LibraryMissing
            | Self::LibraryUnusable { .. }
            | Self::Environment { .. }
            | Self::ProviderMissing { .. }
            | Self::Thread { .. } => "models cannot be run on this worker".into(),
            Self::Panicked => "a fault of the worker ended the load or the call of the model".into(),
        }
    }
}

/// Whether the library says that memory ran out; it has no code for that.
fn is_out_of_memory(message: &str) -> bool {
    const SIGNS: [&str; 5] = [
        "Failed to allocate memory",
        // An arena that has a limit.
        "is smaller than requested bytes",
        "bad_alloc",
        "out of memory",
        "ALLOC_FAILED",
    ];
    SIGNS.iter().any(|sign| message.contains(sign))
}

/// Whether the library says that an output gets another shape than the buffer has that it was given; it has no code for that.
pub(crate) fn refuses_a_buffer(message: &str) -> bool {
    // The second is that of versions before 1.31.
    const SIGNS: [&str; 2] = ["pre-allocated output OrtValues", "shape verification failed"];
    SIGNS.iter().any(|sign| message.contains(sign))
}

/// Why a file cannot be loaded, without the paths that the library's own words have in them.
fn cause_of(source: &ort::Error) -> &'static str {
    let says = |words: &str| source.message().contains(words);
    let is_unknown = says("not a registered function/op") || says("No Op registered");
    if is_unknown || source.code() == ort::ErrorCode::NotImplemented {
        "it has an operator that this worker does not know"
    } else if says("opset") || says("IR version") {
        "it was made for another version of ONNX than this worker runs"
    } else {
        "its file is damaged or no ONNX model"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_failed_otherwise_is_not_made_again() {
        assert!(refuses_a_buffer(
            "has shape {1} … When calling Run() with pre-allocated output OrtValues on a model with"
        ));
        assert!(refuses_a_buffer(
            "OrtValue shape verification failed. Current shape:{1} Requested shape:{3}"
        ));
        assert!(!refuses_a_buffer(
            "indices element out of data bounds, idx=9 must be within the inclusive range [-3,2]"
        ));
        assert!(!refuses_a_buffer("Exiting due to terminate flag being set to true."));
    }
}
