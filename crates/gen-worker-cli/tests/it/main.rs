//! The command from outside: real processes, real projects, real cargo.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod check;
mod doctor;
mod generate;
mod harness;
mod invoke;
mod new;
#[cfg(unix)]
mod orchestrator;
mod package;
mod templates;
