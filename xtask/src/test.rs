//! `test`: all tests, with ONNX Runtime and SeaweedFS in place.

use crate::run::{self, Done, command};
use crate::{ort, seaweed};

pub(crate) fn run() -> Done {
    let (library, store) = (ort::library()?, seaweed::program()?);
    let mut test = command("cargo", &["test", "--workspace", "--locked"]);
    run::run(test.env("ORT_DYLIB_PATH", library).env("WEED_PATH", store))
}
