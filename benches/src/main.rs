//! Measures the worker against a raw echo on the same stream, of the same messages, in the same minute.
//!
//! Every number is the median of [`ROUNDS`] rounds, each interleaved with its yardstick. Nothing here asserts a time: what
//! else runs on a machine is not a fault of the worker.
#![expect(clippy::print_stdout, reason = "it talks to the person at the terminal")]

mod link;
mod load;
mod measure;
mod peer;
mod report;

use std::{net::SocketAddr, path::PathBuf};

use clap::Parser;

/// Rounds of each measurement.
const ROUNDS: usize = 3;

#[derive(Parser)]
enum Arguments {
    /// Measures these binaries.
    Runtime {
        /// The bench's own worker.
        #[arg(long)]
        worker: PathBuf,
        /// A worker with ONNX Runtime and everything else.
        #[arg(long)]
        conformance: Option<PathBuf>,
        /// Prints JSON in place of a table.
        #[arg(long)]
        json: bool,
        /// Only no-op runs, as many at once as this, for ten seconds: for a profiler.
        #[arg(long)]
        only: Option<usize>,
    },
    /// The yardstick: echoes what this address sends.
    Echo { addr: SocketAddr },
}

#[tokio::main]
async fn main() {
    match Arguments::parse() {
        Arguments::Echo { addr } => link::echo(addr).await,
        Arguments::Runtime { worker, only: Some(in_flight), .. } => {
            println!("{:.0} runs/s", measure::profile(&worker, in_flight).await);
        }
        Arguments::Runtime { worker, conformance, json, only: None } => {
            let report = measure::all(&worker, conformance.as_deref()).await;
            print!("{}", if json { report.json() + "\n" } else { report.table() });
        }
    }
}
