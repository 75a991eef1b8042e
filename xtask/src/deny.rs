//! `deny`: licences, bans and sources of the dependency tree, as deny.toml has them.

use crate::prebuilt::DENY;
use crate::run::{self, Done, command};

pub(crate) fn run() -> Done {
    let program = DENY.program()?;
    // Dependencies of every platform, so that cargo-deny needs no network.
    run::run(&mut command("cargo", &["fetch", "--quiet", "--locked"]))?;
    let check = ["--offline", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    run::run(&mut command(&program.display().to_string(), &check))
}
