//! `test`: all tests, with ONNX Runtime, SeaweedFS and a NATS server in place.

use crate::run::{self, Done, command};
use crate::{nats, ort, seaweed};

pub(crate) fn run() -> Done {
    let (library, store, server) = (ort::library()?, seaweed::program()?, nats::program()?);
    let mut test = command("cargo", &["test", "--workspace", "--locked"]);
    test.env("ORT_DYLIB_PATH", library).env("WEED_PATH", store).env("NATS_SERVER_PATH", server);
    run::run(&mut test)
}
