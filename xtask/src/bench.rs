//! `bench`: builds what is measured as it is shipped, and measures it.

use std::process::Command;

use crate::run::{Doing, Done, command, root};
use crate::{nats, ort, seaweed};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is measured.
    subject: Subject,
    /// Print JSON in place of a table.
    #[arg(long)]
    json: bool,
    /// Measure what is built in a tenth of the time, and is less optimised than what is shipped.
    #[arg(long)]
    fast: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Subject {
    /// The job loop: runs, latency, memory, start.
    Runtime,
    /// Downloads: rates, memory, and what is fetched twice.
    Hub,
    /// Models in memory: calls, leases, the way back after an eviction, hits.
    Models,
    /// Outputs: large and small ones, by presigned PUT and to S3.
    Upload,
    /// Orchestrators: settled runs on NATS JetStream and on a file.
    Orchestrator,
}

impl Subject {
    /// Built one by one: together they would share features, and the bench's worker would carry ONNX Runtime.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Runtime => &["gen-worker-bench", "conformance"],
            Self::Hub | Self::Models | Self::Upload => &["gen-worker-bench"],
            Self::Orchestrator => &["gen-worker-bench", "gen-worker-cli"],
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Hub => "bench-hub",
            Self::Models => "bench-models",
            Self::Orchestrator => "bench-orchestrator",
            Self::Runtime | Self::Upload => "bench-runtime",
        }
    }
}

pub(crate) fn measure(args: &Args) -> Done {
    let profile = if args.fast { "bench-fast" } else { "release" };
    for package in args.subject.packages() {
        let build = ["build", "--locked", "--quiet", "--profile", profile, "-p", package];
        let mut cargo = command("cargo", &build);
        if matches!(args.subject, Subject::Upload) {
            cargo.args(["--features", "s3"]);
        }
        run(&mut cargo)?;
    }
    let built = root().join("target").join(profile);
    let mut bench = command(&built.join(args.subject.program()).display().to_string(), &[]);
    let worker = built.join("bench-worker");
    match args.subject {
        Subject::Runtime => {
            bench.arg("runtime").arg("--worker").arg(worker);
            bench.arg("--conformance").arg(built.join("conformance-worker"));
            bench.env("ORT_DYLIB_PATH", ort::library()?);
        }
        Subject::Hub => {
            // Where it builds there is a disk; the temporary folder may be memory.
            bench.arg("hub").arg("--directory").arg(root().join("target"));
        }
        Subject::Models => {
            bench.arg("models").arg("--directory").arg(root().join("target"));
            bench.env("ORT_DYLIB_PATH", ort::library()?);
        }
        Subject::Orchestrator => {
            bench.arg("--orchestrator").arg(built.join("gen-worker")).arg("--worker").arg(worker);
            bench.arg("--nats").arg(nats::program()?);
        }
        Subject::Upload => {
            bench.arg("upload").arg("--worker").arg(worker).arg("--seaweed").arg(seaweed::program()?);
        }
    }
    if args.json {
        bench.arg("--json");
    }
    run(&mut bench)
}

/// Without an echo of the command, which has no place in JSON.
fn run(command: &mut Command) -> Done {
    let program = command.get_program().display().to_string();
    let status = command.status().doing(&program)?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}")) }
}
