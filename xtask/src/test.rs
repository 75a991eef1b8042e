//! `test`: all tests, with ONNX Runtime, SeaweedFS, a NATS server and a browser in place.

use crate::run::{self, Done, command};
use crate::{browser, nats, ort, seaweed};

pub(crate) fn run() -> Done {
    let (library, store) = (ort::library()?, seaweed::program()?);
    let (server, browser) = (nats::program()?, browser::program()?);
    let mut test = command("cargo", &["test", "--workspace", "--locked"]);
    test.env("ORT_DYLIB_PATH", library).env("WEED_PATH", store);
    test.env("NATS_SERVER_PATH", server).env("CHROMIUM_PATH", browser);
    run::run(&mut test)
}
