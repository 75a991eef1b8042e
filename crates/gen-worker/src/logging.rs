//! Log lines on stderr: for people, or JSON.

mod fields;

use std::{
    backtrace::Backtrace,
    io::{self, IsTerminal},
};

use gen_worker_core::{
    config::{ConfigErrors, Env, Reader, Var},
    hide_secrets,
};
use gen_worker_runtime::PanicNote;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use self::fields::ObjectFields;
use crate::backlog::STDERR;

/// Most of a panic's backtrace that is logged, in bytes.
const MAX_BACKTRACE: usize = 4096;

const FORMAT: Var = Var::new(
    "WORKER_LOG_FORMAT",
    "`text` or `json`",
    "",
    "The form of log lines: `text` for people, `json` for one object a line. Unset: text on a terminal, JSON elsewhere.",
);

/// How the worker logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The form of a line; `None`: what stderr is decides.
    pub format: Option<LogFormat>,
}

/// The form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl LogConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[FORMAT];

    /// Reads the settings and keeps every mistake.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let text = Reader::new(env, errors).text(&FORMAT);
        let format = match text.as_deref() {
            None => None,
            Some("text") => Some(LogFormat::Text),
            Some("json") => Some(LogFormat::Json),
            Some(other) => {
                errors.push(format!("{} is `{other}`: expected `text` or `json`", FORMAT.name));
                None
            }
        };
        Self { format }
    }

    fn format(self) -> LogFormat {
        let of_stderr = || if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json };
        self.format.unwrap_or_else(of_stderr)
    }
}

/// Starts logging at the levels that `RUST_LOG` says, else `default`. Does nothing if somebody else has started it.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn start(env: &Env, default: &str) -> io::Result<()> {
    STDERR.start()?;
    let levels = levels(env.get("RUST_LOG").unwrap_or(default), default);
    let lines = fmt::layer().with_writer(crate::lines::stderr);
    // An application that embeds a worker may have a subscriber of its own.
    log_panics();
    // A mistake in it is listed with all others.
    let _ = match LogConfig::from_env(env, &mut ConfigErrors::default()).format() {
        LogFormat::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            tracing_subscriber::registry().with(levels).with(lines).try_init()
        }
        LogFormat::Json => {
            // The innermost span is the last of the list, which has the run too.
            let lines = lines.json().flatten_event(true).with_current_span(false).fmt_fields(ObjectFields);
            tracing_subscriber::registry().with(levels).with(lines).try_init()
        }
    };
    Ok(())
}

/// What is logged. Directives about spans and their fields need a filter that looks at every span, which each run pays for.
fn levels(directives: &str, default: &str) -> Box<dyn Layer<Registry> + Send + Sync> {
    match directives.parse::<Targets>() {
        Ok(targets) => Box::new(targets),
        Err(_) => Box::new(EnvFilter::try_new(directives).unwrap_or_else(|_| EnvFilter::new(default))),
    }
}

/// A panic becomes one line with where it happened and the frames that led there, within the span of its run.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string);
        let backtrace = Backtrace::force_capture().to_string();
        let frames = own_frames(&backtrace);
        gen_worker_runtime::note_panic(PanicNote {
            message: message.to_owned(),
            location: location.clone(),
            frames: frames.lines().map(|line| line.trim().to_owned()).collect(),
        });
        // User code may have put anything into it.
        let message = hide_secrets(message);
        tracing::error!(said = %message, location, frames, "panicked");
        // Not every panic is caught: this may be the last line.
        STDERR.flush();
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
    use std::process::Command;

    use super::*;

    /// Started by the test below, in a process of its own.
    #[test]
    #[ignore = "it ends the process"]
    fn aborts() {
        extern "C" fn cannot_unwind() {
            panic!("the last word");
        }
        let env = Env::from_iter([("WORKER_LOG_FORMAT", "json")]);
        start(&env, "info").unwrap();
        cannot_unwind();
    }

    #[test]
    fn a_panic_that_ends_the_process_is_in_its_log() {
        let this = std::env::current_exe().unwrap();
        let child = Command::new(this).args(["--exact", "logging::tests::aborts", "--ignored"]).output();
        let child = child.unwrap();
        let log = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success());
        for said in ["the last word", "panic in a function that cannot unwind"] {
            assert!(log.contains(&format!("\"said\":\"{said}")), "{said} in {log}");
        }
    }

    #[test]
    fn a_backtrace_is_cut_above_and_below() {
        let long = format!("0: std::panicking\n1: rust_begin_unwind\n{}", "é".repeat(5000));
        let frames = own_frames(&long);
        assert!(frames.starts_with("rust_begin_unwind") && frames.len() <= MAX_BACKTRACE);
    }
}
