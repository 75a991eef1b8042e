//! `bench`: builds what is measured, as fast as release code is, and measures it.

use std::process::Command;

use crate::ort;
use crate::run::{Doing, Done, command, root};

/// Built one by one: together they would share features, and the bench's worker would carry ONNX Runtime.
const MEASURED: [&str; 2] = ["gen-worker-bench", "conformance"];

/// See `Cargo.toml`.
const PROFILE: &str = "bench-fast";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is measured.
    subject: Subject,
    /// Print JSON in place of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Subject {
    /// The job loop: runs, latency, memory, start.
    Runtime,
}

pub(crate) fn measure(args: &Args) -> Done {
    for package in MEASURED {
        let build = ["build", "--locked", "--quiet", "--profile", PROFILE, "-p", package];
        run(&mut command("cargo", &build))?;
    }
    let built = root().join("target").join(PROFILE);
    let mut bench = command(&built.join("bench-runtime").display().to_string(), &[]);
    match args.subject {
        Subject::Runtime => bench.arg("runtime"),
    };
    bench.arg("--worker").arg(built.join("bench-worker"));
    bench.arg("--conformance").arg(built.join("conformance-worker"));
    if args.json {
        bench.arg("--json");
    }
    run(bench.env("ORT_DYLIB_PATH", ort::library()?))
}

/// Without an echo of the command, which has no place in JSON.
fn run(command: &mut Command) -> Done {
    let program = command.get_program().display().to_string();
    let status = command.status().doing(&program)?;
    if status.success() { Ok(()) } else { Err(format!("{program}: {status}")) }
}
