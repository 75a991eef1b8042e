//! Why a model cannot be loaded or run, and what is said of it.

use std::path::PathBuf;

use gen_worker_core::{Classify, FailureKind, ModelRef};

use crate::config::Provider;

/// Why a model cannot be loaded or run.
///
/// A payload can choose the model, so a file that is no model and inputs that do not fit it are `validation`. What is
/// wrong with the machine's set-up is `internal`; the worker finds that at its start and refuses to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// There is no library where it is looked for.
    #[error(
        "ONNX Runtime was not found: run `cargo xtask ort`, or set ORT_DYLIB_PATH to libonnxruntime 1.17 or newer"
    )]
    LibraryMissing,
    /// There is a file, but not a library that can be used.
    #[error("ONNX Runtime cannot be loaded from {}: set ORT_DYLIB_PATH to libonnxruntime 1.17 or newer", path.display())]
    LibraryUnusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ort::LoadDynamicError,
    },
    /// The library does not start.
    #[error("ONNX Runtime cannot start")]
    Environment {
        /// What it says.
        source: ort::Error,
    },
    /// None of the providers that were asked for works here.
    #[error("ONNX Runtime cannot use {provider} on this machine")]
    ProviderMissing {
        /// The last that was tried.
        provider: Provider,
        /// What the library says.
        source: ort::Error,
    },
    /// It is not clear which of the model's files to load.
    #[error("model {model} needs one .onnx file, or one named model.onnx; it has {files}")]
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
        source: ort::Error,
    },
    /// Memory ran out while a model was loaded or run.
    #[error("out of memory")]
    OutOfMemory {
        /// What the library says.
        source: ort::Error,
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
        source: ort::Error,
    },
    /// The model's thread cannot be started.
    #[error("a thread for the model cannot be started")]
    Thread {
        /// What the system says.
        source: std::io::Error,
    },
    /// The model's thread has ended with a panic; the next lease loads the model again.
    #[error("the model's thread has ended")]
    ThreadEnded,
}

impl ModelError {
    /// The error of a load.
    pub(crate) fn load(model: &ModelRef, source: ort::Error) -> Self {
        if is_out_of_memory(source.message()) {
            return Self::OutOfMemory { source };
        }
        Self::Load { model: model.to_string(), source }
    }

    /// The error of a call.
    pub(crate) fn run(source: ort::Error) -> Self {
        if is_out_of_memory(source.message()) {
            return Self::OutOfMemory { source };
        }
        Self::Run { source }
    }
}

impl Classify for ModelError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Files { .. } | Self::Load { .. } | Self::Inputs { .. } | Self::Outputs { .. } => {
                FailureKind::Validation
            }
            Self::OutOfMemory { .. } => FailureKind::Resource,
            Self::Run { source } if source.code() == ort::ErrorCode::InvalidArgument => {
                FailureKind::Validation
            }
            Self::LibraryMissing
            | Self::LibraryUnusable { .. }
            | Self::Environment { .. }
            | Self::ProviderMissing { .. }
            | Self::Run { .. }
            | Self::Thread { .. }
            | Self::ThreadEnded => FailureKind::Internal,
        }
    }

    fn safe_message(&self) -> String {
        match self {
            Self::OutOfMemory { .. } => "out of memory".into(),
            Self::Files { files, .. } => {
                format!("the model needs one .onnx file, or one named model.onnx; it has {files}")
            }
            Self::Load { .. } => {
                "the model's file is damaged or no ONNX model that this worker can run".into()
            }
            Self::Inputs { .. } | Self::Outputs { .. } => self.to_string(),
            Self::Run { .. } => "the model cannot be run with these inputs".into(),
            Self::LibraryMissing
            | Self::LibraryUnusable { .. }
            | Self::Environment { .. }
            | Self::ProviderMissing { .. }
            | Self::Thread { .. }
            | Self::ThreadEnded => "models cannot be run on this worker".into(),
        }
    }
}

/// Whether the library says that memory ran out; it has no code for that.
fn is_out_of_memory(message: &str) -> bool {
    ["Failed to allocate memory", "bad_alloc", "out of memory", "ALLOC_FAILED"]
        .iter()
        .any(|sign| message.contains(sign))
}
