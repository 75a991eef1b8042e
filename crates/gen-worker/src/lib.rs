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
pub mod __command;
#[doc(hidden)]
pub mod __private;
#[cfg(feature = "mimalloc")]
mod allocator;
mod app;
mod assemble;
mod backlog;
#[cfg(feature = "dev")]
mod call;
mod config;
mod cozy_toml;
#[cfg(feature = "dev")]
mod dev;
#[cfg(doctest)]
mod doctests;
mod doctor;
mod health;
#[cfg(feature = "dev")]
mod here;
mod isolation;
mod lines;
mod logging;
mod manifest;
#[cfg(test)]
mod metrics;
mod nearest;
mod otel;
#[cfg(test)]
mod pages;
mod prefetch;
#[cfg(feature = "dev")]
mod run;
mod run_room;
#[cfg(feature = "dev")]
mod signals;
mod tell;

/// What stands around every call of a function, given to [`WorkerBuilder::layer`].
pub use gen_worker_core::layer;
/// What stands behind a worker: for those who bring a part of it of their own, such as a model manager.
pub use gen_worker_core::ports;
pub use gen_worker_core::{
    ActionContext, Asset, AssetRef, ByteStream, Call, CallParts, CancelReason, DeltaStream, Extensions,
    Extract, FailureKind, Frame, Function, FunctionBuilder, FunctionSpec, InjectedModel, Input, IntoOutput,
    JobFailure, LocalModel, LogLevel, ModelArtifacts, ModelBinding, ModelNeed, ModelRef, Outgoing,
    OutputBody, RawOutput, RealtimePeer, RealtimeSocket, ResourceRequirements, SetUp, State, StateType,
    TakesState, TearDown, TraceContext, WorkerError,
    config::{ConfigErrors, Env},
};
pub use gen_worker_hub::{Cache, CachedModel, Freed, Mended};
pub use gen_worker_macros::{function, worker_function, worker_setup, worker_teardown, worker_websocket};
#[cfg(feature = "ort")]
pub use gen_worker_models_ort::{self as ort, OrtModel};
pub use gen_worker_runtime::{Ports, RuntimeConfig, Shutdown, Worker, WorkerBuilder, WorkerFailure};
#[cfg(feature = "testing")]
pub use gen_worker_testkit as testing;

#[cfg(feature = "otel")]
pub use crate::otel::OtelError;
pub use crate::{
    assemble::{AssembleError, assemble},
    config::{WorkerConfig, environment},
    isolation::ProcessConfig,
    logging::{LogConfig, LogFormat},
    otel::OtelConfig,
};

/// Registers a model manager of one's own, a type that is `ModelManager + Default`. The setting `MODEL_MANAGER_CLASS`, with the
/// type's Rust path, puts it in the place of ONNX Runtime's.
///
/// ```
/// mod managers {
///     # use gen_worker::{LocalModel, ModelRef, ports::*, JobFailure};
///     #[derive(Default)]
///     pub struct Mine;
///     # #[async_trait::async_trait]
///     # impl ModelManager for Mine {
///     #     async fn load(&self, _: &LocalModel) -> Result<(), JobFailure> { Ok(()) }
///     #     async fn lease(&self, _: &LocalModel, _: &LeaseHolder) -> Result<ModelLease, JobFailure> { unreachable!() }
///     #     async fn unload(&self, _: &ModelRef) -> Result<(), JobFailure> { Ok(()) }
///     #     fn resident(&self) -> Vec<String> { vec![] }
///     #     fn stats(&self) -> ModelStats { ModelStats::default() }
///     #     fn device(&self) -> ModelDevice { ModelDevice::Gpu }
///     #     fn engine_version(&self) -> Option<String> { None }
///     # }
/// }
///
/// gen_worker::register_model_manager!(managers::Mine); // MODEL_MANAGER_CLASS=my_worker::managers::Mine
/// ```
#[macro_export]
macro_rules! register_model_manager {
    ($manager:ty) => {
        $crate::__private::submit! { $crate::__private::ManagerRegistration::of::<$manager>() }
    };
}

/// Writes `fn main` of a worker binary: it serves every function that is marked with [`worker_function`] and linked in.
///
/// `main!(configure)`, with a `fn configure(worker: WorkerBuilder) -> WorkerBuilder`, changes the worker before it is built: it
/// adds layers or values. It is called for the verbs that run a worker.
#[macro_export]
macro_rules! main {
    () => {
        fn main() -> ::std::process::ExitCode {
            $crate::__private::main()
        }
    };
    ($configure:expr) => {
        $crate::main!();

        $crate::__private::submit! { $crate::__private::Configuration { configure: $configure } }
    };
}
