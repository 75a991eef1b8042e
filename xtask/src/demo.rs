//! `demo`: the main job of the README: a picture goes in, a model enlarges it, the picture comes out.

use crate::{
    ort,
    run::{self, Done, command},
};

/// Run in the example's folder, so that its models and its `cozy.toml` are found.
const RUN: &[&str] =
    &["run", "--locked", "--quiet", "-p", "upscale", "--", "run", "upscale", "image@chelsea.png", "--pretty"];

pub(crate) fn run() -> Done {
    let library = ort::library()?;
    let mut build = command("cargo", &["build", "--locked", "-p", "upscale"]);
    run::run(&mut build)?;
    let mut enlarge = command("cargo", RUN);
    run::run(enlarge.env("ORT_DYLIB_PATH", library).current_dir(run::root().join("examples/upscale")))
}
