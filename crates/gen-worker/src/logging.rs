//! Log lines on stderr: for people on a terminal, JSON elsewhere.

use std::io::IsTerminal;

use gen_worker_core::config::Env;
use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging at the levels that `RUST_LOG` says, else `default`. Does nothing if somebody else has started it.
pub(crate) fn start(env: &Env, default: &str) {
    let directives = env.get("RUST_LOG").unwrap_or(default);
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    // An application that embeds a worker may have a subscriber of its own.
    let _ = if terminal { lines.try_init() } else { lines.json().flatten_event(true).try_init() };
}
