//! A worker seen from the outside: health and metrics over HTTP, and what systemd wants to know.
//!
//! A [`Status`] is the observer of a worker. It works on the worker's control thread, so that no user code, however it
//! spins, keeps an answer back: it serves `/livez`, `/readyz` and `/startupz` in JSON and `/metrics` in Prometheus's text, and
//! sends systemd its signs of life.
//!
//! ```
//! use gen_worker_core::config::{ConfigErrors, Env};
//! use gen_worker_status::{Status, StatusConfig};
//!
//! let env = Env::from_iter([("WORKER_HTTP_ADDR", "127.0.0.1:0")]);
//! let mut errors = ConfigErrors::default();
//! let config = StatusConfig::from_env(&env, &mut errors);
//! let status = Status::open(&errors.into_result(config)?, Vec::new())?;
//! assert!(status.is_some());
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod config;
mod health;
mod http;
#[cfg(unix)]
mod notify;
mod process;
mod status;
mod text;

pub use crate::{
    config::StatusConfig,
    process::METRICS,
    status::{Status, StatusError},
    text::{MEDIA_TYPE, render},
};
