//! The worker itself: it dials a scheduler, takes runs, calls functions, and reports exactly one result for each.
//!
//! [`Worker::run`] blocks the control thread: `connection` holds the stream, `dispatch` sends each command on,
//! `admission` hands out permits, `job` is the pipeline of one run, `outbox` keeps what must be said, `prefetch` brings the
//! deployment's models. What the worker needs of the outside are [`Ports`]; this crate knows neither HTTP nor any inference
//! engine.
//!
//! ```no_run
//! use gen_worker_core::{Call, Function, WorkerError, config::{ConfigErrors, Env}};
//! use gen_worker_runtime::{RuntimeConfig, Worker};
//!
//! let env = Env::from_iter([("SCHEDULER_ADDR", "localhost:8080")]);
//! let mut errors = ConfigErrors::default();
//! let config = RuntimeConfig::from_env(&env, &mut errors);
//! let echo = Function::builder::<serde_json::Value>("echo", module_path!())
//!     .asynchronous(|call: Call<serde_json::Value>| async move { Ok::<_, WorkerError>(call.input) })?;
//! Worker::builder(errors.into_result(config)?).function(echo).build()?.run()?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod admission;
mod command;
mod config;
mod connection;
mod credential;
mod dispatch;
mod fitness;
mod heartbeat;
mod hooks;
mod host;
mod job;
mod journal;
mod machine;
mod meters;
mod model_control;
mod outbox;
mod ports;
mod prefetch;
mod realtime;
mod registry;
mod report;
mod shutdown;
mod snapshot;
mod vitals;
mod wire;
mod worker;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use crate::wire::inbound::check as check_message;
pub use crate::{
    config::{FakeGpu, RuntimeConfig},
    connection::{Address, AddressError, ClientTls, ConnectionError, RedirectTarget, reach},
    hooks::{HookError, SetUpFailure},
    journal::JournalError,
    machine::{Gpu, Machine, machine},
    meters::METRICS,
    ports::Ports,
    registry::RegistryError,
    report::{PanicNote, keep_line, note_panic},
    shutdown::{Phase, Shutdown},
    worker::{Worker, WorkerBuilder, WorkerFailure},
};
