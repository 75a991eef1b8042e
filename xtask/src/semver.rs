//! `semver`: what the library crates offer, held against the last tag.

use crate::run::{self, Done, command, output};
use crate::workspace::Workspace;

const TOOL: &str = "cargo-semver-checks";

/// Before the first tag there is nobody whose code a change could break, which is said and is no failure: so CI can ask from the
/// start, and nobody has to remember.
pub(crate) fn run() -> Done {
    let tags =
        output(&mut command("git", &["tag", "--list", "v*", "--merged", "HEAD", "--sort=-v:refname"]))?;
    let Some(tag) = tags.lines().next() else {
        println!(
            "there is no tag `v*` behind this commit: nothing was promised to anybody yet, so nothing is compared"
        );
        return Ok(());
    };
    if command(TOOL, &["--version"]).output().is_err() {
        return Err(format!("to compare with {tag}, install it first: `cargo install --locked {TOOL}`"));
    }
    let mut check = command("cargo", &["semver-checks", "check-release", "--baseline-rev", tag]);
    for package in Workspace::read()?.crates().filter(|package| package.is_library()) {
        check.args(["--package", &package.name]);
    }
    run::run(&mut check)?;
    println!(
        "types of other crates in public places are for a person: `cargo public-api diff {tag}..HEAD`, by a nightly toolchain"
    );
    Ok(())
}
