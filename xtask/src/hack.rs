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
