//! Chores of the repository: `cargo xtask <name>`. CI runs the same words.
#![expect(clippy::print_stderr, reason = "a chore talks to the person at the terminal")]

mod proto;
mod run;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Chores of the gen-worker repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    /// Writes the wire stubs of gen-worker-proto from proto/*.proto
    Proto(proto::Args),
    /// Checks edges between crates, manifests and module docs
    Tidy,
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto(args) => proto::run(&args),
        Chore::Tidy => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
