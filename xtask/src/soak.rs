//! `soak`: builds and runs what tests/src/soak is.

use crate::run::{self, Done, command, root};
use crate::{nats, ort, seaweed};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long faults happen; starting, settling and counting come on top. Of a fleet: how long all may take
    #[arg(long, default_value_t = 600, default_value_if("fleet", "true", "3600"))]
    seconds: u64,
    /// What the schedule and the calls are made of
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kill the orchestrator too: its runs must survive it
    #[arg(long, conflicts_with = "fleet")]
    kill_orchestrator: bool,
    /// Three orchestrators on three NATS servers, eight workers, and a number of runs while each of them is killed
    #[arg(long)]
    fleet: bool,
    /// How many runs a fleet is asked for
    #[arg(long, default_value_t = 20_000, requires = "fleet")]
    runs: u64,
    /// How often something of a fleet fails
    #[arg(long, default_value_t = 160, requires = "fleet")]
    faults: u64,
    /// Cut servers and orchestrators of a fleet off as well
    #[arg(long, requires = "fleet")]
    partition: bool,
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
    let library = ort::library()?;
    let peer = if args.fleet { ("--nats", nats::program()?) } else { ("--weed", seaweed::program()?) };
    run::run(&mut command("cargo", &BUILD))?;
    let built = root().join("target/debug");
    let way = if args.fleet { "fleet" } else { "run" };
    let mut soak = command(&built.join("soak").display().to_string(), &[way]);
    soak.args(["--seconds", &args.seconds.to_string(), "--seed", &args.seed.to_string()]);
    if args.fleet {
        soak.args(["--runs", &args.runs.to_string(), "--faults", &args.faults.to_string()]);
    }
    soak.args(args.kill_orchestrator.then_some("--kill-orchestrator"));
    soak.args(args.partition.then_some("--partition"));
    soak.arg("--worker").arg(built.join("conformance-under-test"));
    run::run(soak.arg(peer.0).arg(peer.1).arg("--ort").arg(library))
}
