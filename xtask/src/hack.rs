//! `hack`: each crate alone, and with each of its features alone.

use crate::prebuilt::HACK;
use crate::run::{self, Done, command};
use crate::workspace::Workspace;

/// In the workspace a crate may lean on features that another one switched on; alone it may not. One more feature is one more
/// `cargo check` of what depends on it, so combinations are left out.
pub(crate) fn run() -> Done {
    let program = HACK.program()?.display().to_string();
    let mut hack = command(&program, &["hack", "check", "--each-feature", "--locked"]);
    for package in Workspace::read()?.crates() {
        hack.args(["--package", &package.name]);
    }
    run::run(&mut hack)
}

/// The part of it that CI has time for: each crate alone as it is by default, and the facade with nothing and with everything.
pub(crate) fn alone() -> Done {
    for package in Workspace::read()?.crates() {
        check(&["-p", &package.name])?;
    }
    check(&["-p", "gen-worker", "--no-default-features"])?;
    check(&["-p", "gen-worker", "--all-features"])
}

fn check(of: &[&str]) -> Done {
    run::run(command("cargo", &["check", "--locked"]).args(of))
}
