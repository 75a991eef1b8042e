//! Chores of the repository: `cargo xtask <name>`. CI runs the same words.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore talks to the person at the terminal")]

mod bench;
mod browser;
mod budget;
mod ci;
mod demo;
mod deny;
mod docs;
mod fuzz;
mod gpu;
mod hack;
mod nats;
mod ort;
mod pages;
mod prebuilt;
mod proto;
mod reproduce;
mod run;
mod sbom;
mod seaweed;
mod semver;
mod soak;
mod test;
mod tidy;
mod tree;
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
    /// Checks each crate alone, and with each of its features alone
    Hack,
    /// Counts the crates a worker is linked from, and holds them to budget.toml
    Budget,
    /// Writes what programs are linked from to target/sbom, as CycloneDX 1.5
    Sbom(sbom::Args),
    /// Compares what library crates offer with the last tag
    Semver,
    /// Builds a program twice, in two folders, and compares the bytes
    Reproduce(reproduce::Args),
    /// Feeds the parsers of foreign bytes anything at all
    Fuzz(fuzz::Args),
    /// Runs an orchestrator, a hub, a store and three workers while everything fails
    Soak(soak::Args),
    /// Puts ONNX Runtime at .ort/lib and prints its path
    Ort,
    /// Puts the NATS server, for tests, at .nats/nats-server and prints its path
    Nats,
    /// Puts SeaweedFS, an S3-compatible store for tests, at .weed/weed and prints its path
    Seaweed,
    /// Finds a Chromium for the tests of the dashboard, installs Debian's if there is none, and prints its path
    Browser,
    /// Writes docs/configuration.md and docs/operations/metrics.md from the code
    Docs,
    /// Runs the shell commands of the pages, and says which are not run and why
    Pages(pages::Args),
    /// Enlarges a picture: an orchestrator and the upscale worker in one process
    Demo,
    /// Measures the worker against a raw echo
    Bench(bench::Args),
    /// Checks models on an NVIDIA card: memory, evictions, cancels, leaks. Ends with 3 where there is none
    GpuCheck(gpu::Args),
    /// Runs all tests, with ONNX Runtime, SeaweedFS, a NATS server and a browser in place
    Test,
    /// Runs all that must pass, fastest first
    Ci,
}

fn main() -> ExitCode {
    let done = match Chore::parse() {
        Chore::Proto(args) => proto::run(&args),
        Chore::Tidy => tidy::run(),
        Chore::Deny => deny::run(),
        Chore::Hack => hack::run(),
        Chore::Budget => budget::run(),
        Chore::Sbom(args) => sbom::run(&args),
        Chore::Semver => semver::run(),
        Chore::Reproduce(args) => reproduce::run(&args),
        Chore::Fuzz(args) => fuzz::run(&args),
        Chore::Soak(args) => soak::run(&args),
        Chore::Ort => ort::run(),
        Chore::Nats => nats::run(),
        Chore::Seaweed => seaweed::run(),
        Chore::Browser => browser::run(),
        Chore::Docs => docs::run(),
        Chore::Pages(args) => pages::run(&args),
        Chore::Demo => demo::run(),
        Chore::Bench(args) => bench::measure(&args),
        Chore::GpuCheck(args) => return gpu::check(&args),
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
