//! Chores of the repository: `cargo xtask <name>`. CI runs the same words.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to the person at the terminal")]

mod bench;
mod ci;
mod demo;
mod deny;
mod docs;
mod nats;
mod ort;
mod proto;
mod run;
mod seaweed;
mod test;
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
    /// Checks licences, bans and sources of all dependencies
    Deny,
    /// Puts ONNX Runtime at .ort/lib and prints its path
    Ort,
    /// Puts the NATS server, for tests, at .nats/nats-server and prints its path
    Nats,
    /// Puts SeaweedFS, an S3-compatible store for tests, at .weed/weed and prints its path
    Seaweed,
    /// Writes docs/configuration.md and docs/operations/metrics.md from the code
    Docs,
    /// Enlarges a picture: an orchestrator and the upscale worker in one process
    Demo,
    /// Measures the worker against a raw echo
    Bench(bench::Args),
    /// Runs all tests, with ONNX Runtime, SeaweedFS and a NATS server in place
    Test,
    /// Runs all that must pass, fastest first
    Ci,
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto(args) => proto::run(&args),
        Chore::Tidy => tidy::run(),
        Chore::Deny => deny::run(),
        Chore::Ort => ort::run(),
        Chore::Nats => nats::run(),
        Chore::Seaweed => seaweed::run(),
        Chore::Docs => docs::run(),
        Chore::Demo => demo::run(),
        Chore::Bench(args) => bench::measure(&args),
        Chore::Test => test::run(),
        Chore::Ci => ci::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}
