//! Checks, on a machine with an NVIDIA card, what can be seen only there: `cargo xtask gpu-check` builds and runs it. It makes its
//! own models, so that the program and the libraries are all that has to be carried to another machine.
//!
//! Ends with 0 when all is as it should be, 1 when something is not, 2 for a mistake in the arguments, and 3 when there is no card,
//! no library, or none for cards: then nothing was checked.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to the person at the terminal")]

mod checks;
mod memory;
#[path = "../../tests/onnx/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod onnx;
mod table;
mod threads;

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use gen_worker_models_ort::Provider;

use self::checks::Settings;

/// Nothing could be checked.
const NOTHING: u8 = 3;

/// Checks models in memory on an NVIDIA card, or, to see that the checks work, on the processor.
#[derive(Parser)]
struct Arguments {
    /// What models run on: `cuda`, `tensorrt` or `cpu`.
    #[arg(long, default_value = "cuda")]
    provider: Provider,
    /// How often a model is loaded and unloaded.
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    /// MiB of the models whose bytes are measured.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=8192))]
    mib: u32,
    /// Longest time, in milliseconds, until a canceled run has ended.
    #[arg(long, default_value_t = 100)]
    cancel_ms: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { provider, cycles, mib, cancel_ms } = Arguments::parse();
    let settings = Settings { provider, cycles, mib, cancel: Duration::from_millis(cancel_ms) };
    match checks::all(&settings).await {
        Ok(table) => {
            print!("{table}");
            if table.is_all_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(missing) => {
            eprintln!("nothing was checked: {missing}");
            ExitCode::from(NOTHING)
        }
    }
}
