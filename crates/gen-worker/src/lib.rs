//! A Rust SDK and runtime for generative-AI workers.

#[doc(hidden)]
pub mod __private;

pub use gen_worker_core::{
    ActionContext, Asset, Call, CancelReason, DeltaStream, Extract, Function, LogLevel, ModelArtifacts, ModelRef,
    OutputBody, RawOutput, ResourceRequirements, State, WorkerError,
};
pub use gen_worker_macros::{function, worker_function};
