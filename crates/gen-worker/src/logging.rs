//! Log lines on stderr: for people on a terminal, JSON elsewhere.

use std::{backtrace::Backtrace, io::IsTerminal};

use gen_worker_core::config::Env;
use tracing_subscriber::{EnvFilter, fmt};

/// Most of a panic's backtrace that is logged, in bytes.
const MAX_BACKTRACE: usize = 4096;

/// Starts logging at the levels that `RUST_LOG` says, else `default`. Does nothing if somebody else has started it.
pub(crate) fn start(env: &Env, default: &str) {
    let directives = env.get("RUST_LOG").unwrap_or(default);
    let filter = EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new(default));
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::stderr().is_terminal();
    // An application that embeds a worker may have a subscriber of its own.
    log_panics();
    let _ = if terminal { lines.try_init() } else { lines.json().flatten_event(true).try_init() };
}

/// A panic becomes one line with where it happened and the frames that led there, within the span of its run.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string);
        let backtrace = Backtrace::force_capture().to_string();
        let frames = own_frames(&backtrace);
        tracing::error!(message, location, frames, "panicked");
    }));
}

/// The part of a backtrace below the panic machinery, within its bound.
fn own_frames(backtrace: &str) -> &str {
    let start = backtrace.rfind("rust_begin_unwind").unwrap_or(0);
    let frames = &backtrace[start..];
    let end = (0..=MAX_BACKTRACE.min(frames.len())).rev().find(|at| frames.is_char_boundary(*at));
    &frames[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backtrace_is_cut_above_and_below() {
        let long = format!("0: std::panicking\n1: rust_begin_unwind\n{}", "é".repeat(5000));
        let frames = own_frames(&long);
        assert!(frames.starts_with("rust_begin_unwind") && frames.len() <= MAX_BACKTRACE);
    }
}
