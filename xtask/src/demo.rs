//! `demo`: the main job of the README: a picture goes in, a model enlarges it, the picture comes out.

use crate::{
    ort,
    run::{self, Done, command},
};

/// Run in the example's folder, so that its models and its `cozy.toml` are found.
const DEV: &[&str] = &[
    "run",
    "--locked",
    "--quiet",
    "-p",
    "upscale",
    "--",
    "dev",
    "--run",
    "upscale",
    "--file",
    "image=chelsea.png",
];

pub(crate) fn run() -> Done {
    let library = ort::library()?;
    let mut build = command("cargo", &["build", "--locked", "-p", "upscale"]);
    run::run(&mut build)?;
    let mut dev = command("cargo", DEV);
    run::run(dev.env("ORT_DYLIB_PATH", library).current_dir(run::root().join("examples/upscale")))
}
