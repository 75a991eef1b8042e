//! `test`: all tests, with ONNX Runtime, SeaweedFS and a browser in place.

use crate::run::{self, Done, command};
use crate::{browser, ort, seaweed};

pub(crate) fn run() -> Done {
    let (library, store, browser) = (ort::library()?, seaweed::program()?, browser::program()?);
    let mut test = command("cargo", &["test", "--workspace", "--locked"]);
    run::run(test.env("ORT_DYLIB_PATH", library).env("WEED_PATH", store).env("CHROMIUM_PATH", browser))
}
