//! `gen-worker ort`: the pinned ONNX Runtime, where workers find it by themselves.

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;
use gen_worker_wheel::{Device, ORT_VERSION, onnx_runtime};

use crate::Failure;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Put its library into a folder, and print where it is. Needs python3 with pip
    Install {
        /// The one for NVIDIA cards, of 260 MB. CUDA 13 and cuDNN 9 must be on the machine
        #[arg(long)]
        cuda: bool,
        /// The folder; in `.ort/lib` of a project or a folder above it workers find it
        #[arg(long, value_name = "FOLDER", default_value = ".ort/lib")]
        into: PathBuf,
    },
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the answer is for whoever typed the command")]
pub(crate) fn run(verb: &Verb) -> Result<ExitCode, Failure> {
    let Verb::Install { cuda, into } = verb;
    let wheel = onnx_runtime(if *cuda { Device::Cuda } else { Device::Cpu })?;
    let placed = wheel.put_in_place(into)?;
    if !placed.fetched {
        eprintln!("ONNX Runtime {ORT_VERSION} is already in place");
    }
    println!("{}", std::path::absolute(placed.first)?.display());
    Ok(ExitCode::SUCCESS)
}
