//! `soak`: builds and runs what tests/src/soak is.

use crate::run::{self, Done, command, root};
use crate::{ort, seaweed};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long faults happen; starting, settling and counting come on top
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// What the schedule and the calls are made of
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kill the orchestrator too: its runs must survive it
    #[arg(long)]
    kill_orchestrator: bool,
}

/// Built as the tests are, so that there is nothing to build after them.
const BUILD: [&str; 8] = [
    "build",
    "--locked",
    "--package",
    "gen-worker-tests",
    "--bin",
    "soak",
    "--bin",
    "conformance-under-test",
];

pub(crate) fn run(args: &Args) -> Done {
    let (library, store) = (ort::library()?, seaweed::program()?);
    run::run(&mut command("cargo", &BUILD))?;
    let built = root().join("target/debug");
    let mut soak = command(&built.join("soak").display().to_string(), &["run"]);
    soak.args(["--seconds", &args.seconds.to_string(), "--seed", &args.seed.to_string()]);
    soak.args(args.kill_orchestrator.then_some("--kill-orchestrator"));
    soak.arg("--worker").arg(built.join("conformance-under-test"));
    run::run(soak.arg("--weed").arg(store).arg("--ort").arg(library))
}
