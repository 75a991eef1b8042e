//! A Rust SDK and runtime for generative-AI workers.
//!
//! A tenant writes functions; the worker takes runs from a scheduler, fetches their files and models, calls the function
//! with a deadline and a cancel signal, streams its progress, stores its outputs, and reports exactly one result a run.
//!
//! ```no_run
//! use gen_worker::{ActionContext, WorkerError, worker_function};
//!
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! struct Greeting {
//!     name: String,
//! }
//!
//! #[derive(serde::Serialize, schemars::JsonSchema)]
//! struct Reply {
//!     text: String,
//! }
//!
//! #[worker_function]
//! async fn hello(ctx: ActionContext, input: Greeting) -> Result<Reply, WorkerError> {
//!     ctx.progress(0.5, "thinking of something to say");
//!     Ok(Reply { text: format!("Hello, {}!", input.name) })
//! }
//!
//! gen_worker::main!();
//! ```
//!
//! The crate joins the others ([`assemble`]) and gives a binary its verbs ([`main!`]). An application that wants a worker
//! inside itself takes [`Worker::builder`] and [`function!`].

#[doc(hidden)]
pub mod __private;
mod app;
mod assemble;
mod config;
#[cfg(feature = "dev")]
mod dev;
#[cfg(doctest)]
mod doctests;
mod isolation;
mod logging;
#[cfg(test)]
mod metrics;

pub use gen_worker_core::{
    ActionContext, Asset, AssetRef, ByteStream, Call, CancelReason, DeltaStream, Extract, Frame, Function,
    FunctionBuilder, FunctionSpec, Input, IntoOutput, LogLevel, ModelArtifacts, ModelBinding, ModelRef,
    Outgoing, OutputBody, RawOutput, RealtimePeer, RealtimeSocket, ResourceRequirements, State, WorkerError,
    config::{ConfigErrors, Env},
};
pub use gen_worker_hub::{Cache, CachedModel, Freed, Mended};
pub use gen_worker_macros::{function, worker_function, worker_websocket};
#[cfg(feature = "ort")]
pub use gen_worker_models_ort::{self as ort, OrtModel};
pub use gen_worker_runtime::{Ports, RuntimeConfig, Shutdown, Worker, WorkerBuilder, WorkerFailure};
#[cfg(feature = "testing")]
pub use gen_worker_testkit as testing;

pub use crate::{
    assemble::{AssembleError, assemble},
    config::{WorkerConfig, environment},
    isolation::ProcessConfig,
    logging::{LogConfig, LogFormat},
};

/// Writes `fn main` of a worker binary: it serves every function that is marked with [`worker_function`] and linked in.
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            $crate::__private::main()
        }
    };
}
