//! `gpu-check`: what can be seen only on an NVIDIA card.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::ort;
use crate::run::{Doing, Done, command, root, run};

/// Nothing could be checked, for want of a card or of its libraries. The program says so with the same code.
const NOTHING: u8 = 3;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What models run on: `cuda`, `tensorrt`, or `cpu`, which only shows that the checks work.
    #[arg(long, default_value = "cuda")]
    provider: String,
    /// Build the program, say where it is, and run nothing: it needs a card only to run.
    #[arg(long)]
    build: bool,
    /// Further arguments of the program, after `--`.
    #[arg(last = true)]
    further: Vec<String>,
}

pub(crate) fn check(args: &Args) -> ExitCode {
    let is_card = args.provider != "cpu";
    let missing = if is_card && !args.build { what_is_missing() } else { None };
    if let Some(missing) = missing {
        eprintln!("nothing was checked: {missing}");
        return ExitCode::from(NOTHING);
    }
    match build(is_card).and_then(|program| started(args, &program)) {
        Ok(code) => ExitCode::from(code),
        Err(sentence) => {
            eprintln!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Before anything is built for it.
fn what_is_missing() -> Option<String> {
    let listed = Command::new("nvidia-smi").arg("-L").output();
    if !listed.is_ok_and(|listed| listed.status.success() && !listed.stdout.is_empty()) {
        return Some(
            "`nvidia-smi -L` finds no NVIDIA card here; `--build` makes the program for a machine that has one, and \
            `--provider cpu` runs the checks on the processor"
                .into(),
        );
    }
    let library = match ort::library() {
        Ok(library) => library,
        Err(sentence) => return Some(sentence),
    };
    let plug_in = library.with_file_name("libonnxruntime_providers_cuda.so");
    (!plug_in.exists()).then(|| {
        format!(
            "{} is an ONNX Runtime without CUDA: `gen-worker ort install --cuda --into DIRECTORY`, and set ORT_DYLIB_PATH to its \
            libonnxruntime.so",
            library.display()
        )
    })
}

fn build(is_card: bool) -> Done<PathBuf> {
    let package = ["build", "--release", "--locked", "-p", "gen-worker-models-ort", "--example", "gpu_check"];
    let mut cargo = command("cargo", &package);
    if is_card {
        cargo.args(["--features", "cuda,tensorrt"]);
    }
    run(&mut cargo)?;
    Ok(root().join("target/release/examples/gpu_check"))
}

fn started(args: &Args, program: &PathBuf) -> Done<u8> {
    if args.build {
        println!("{}", program.display());
        return Ok(0);
    }
    let mut check = Command::new(program);
    check.args(["--provider", &args.provider]).args(&args.further).env("ORT_DYLIB_PATH", ort::library()?);
    let status = check.status().doing(program.display())?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
