//! Chores of the repository: `cargo xtask <name>`. CI runs the same words.
#![expect(clippy::print_stderr, reason = "a chore talks to the person at the terminal")]

mod proto;
mod run;

use std::process::ExitCode;

use clap::Parser;

/// Chores of the gen-worker repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    /// Writes the wire stubs of gen-worker-proto from proto/*.proto
    Proto(proto::Args),
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto(args) => proto::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
