//! `ort`: the shared library of ONNX Runtime at .ort/lib, as `gen-worker ort install` puts it there for others.

use std::path::PathBuf;

use gen_worker_wheel::{Device, ORT_VERSION, WheelError, onnx_runtime};

use crate::run::{Done, reason, root};

pub(crate) fn run() -> Done {
    let library = ensure()?;
    println!("{}", library.display());
    Ok(())
}

/// The library for tests: what `ORT_DYLIB_PATH` names, else the one at .ort/lib, fetched if need be.
pub(crate) fn library() -> Done<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) => Ok(path.into()),
        None => ensure(),
    }
}

fn ensure() -> Done<PathBuf> {
    put_in_place().map_err(|error| {
        format!(
            "ONNX Runtime {ORT_VERSION} could not be put in place ({}): set ORT_DYLIB_PATH to the shared library of \
            an ONNX Runtime of 1.17 or newer",
            reason(&error),
        )
    })
}

fn put_in_place() -> Result<PathBuf, WheelError> {
    let placed = onnx_runtime(Device::Cpu)?.put_in_place(&root().join(".ort/lib"))?;
    if !placed.fetched {
        eprintln!("ONNX Runtime {ORT_VERSION} is already in place");
    }
    Ok(placed.first)
}
