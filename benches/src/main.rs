//! Measures the worker against a raw echo on the same stream, of the same messages, in the same minute; and its outputs
//! against what sends the same bytes and nothing else.
//!
//! Every number is the median of [`ROUNDS`] rounds or more, each interleaved with its yardstick. Nothing here asserts a time: what
//! else runs on a machine is not a fault of the worker.
#![expect(clippy::print_stdout, reason = "it talks to the person at the terminal")]

mod link;
mod load;
mod measure;
mod peer;
mod report;
mod sink;
mod upload;

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
        /// Only no-op runs, as many at once as this, in turn with the echo for twenty seconds: for a profiler.
        #[arg(long)]
        only: Option<usize>,
    },
    /// Measures outputs on their way out of this worker.
    Upload {
        /// The bench's own worker.
        #[arg(long)]
        worker: PathBuf,
        /// SeaweedFS's program.
        #[arg(long)]
        seaweed: PathBuf,
        /// Prints JSON in place of a table.
        #[arg(long)]
        json: bool,
    },
    /// The yardstick: echoes what this address sends.
    Echo { addr: SocketAddr },
}

#[tokio::main]
async fn main() {
    match Arguments::parse() {
        Arguments::Echo { addr } => link::echo(addr).await,
        Arguments::Runtime { worker, only: Some(in_flight), .. } => {
            let (runs, raw) = measure::profile(&worker, in_flight).await;
            println!("{runs:.0} runs/s, {:.3} of the echo's {raw:.0}", runs / raw);
        }
        Arguments::Runtime { worker, conformance, json, only: None } => {
            print(&measure::all(&worker, conformance.as_deref()).await, json);
        }
        Arguments::Upload { worker, seaweed, json } => print(&upload::all(&worker, &seaweed).await, json),
    }
}

fn print(report: &report::Report, json: bool) {
    print!("{}", if json { report.json() + "\n" } else { report.table() });
}
