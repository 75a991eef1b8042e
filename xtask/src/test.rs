//! `test`: all tests, with ONNX Runtime in place.

use crate::ort;
use crate::run::{self, Done, command};

pub(crate) fn run() -> Done {
    let library = ort::library()?;
    let mut test = command("cargo", &["test", "--workspace", "--locked"]);
    run::run(test.env("ORT_DYLIB_PATH", library))
}
