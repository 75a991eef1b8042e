//! `ci`: what must pass, in the order that fails fastest.

use crate::run::{self, Done, command};
use crate::workspace::Workspace;
use crate::{deny, pages, proto, test, tidy};

pub(crate) fn run() -> Done {
    cargo(&["fmt", "--all", "--check"])?;
    proto::check()?;
    tidy::run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    each_alone()?;
    deny::run()?;
    test::run()?;
    pages::run(&pages::Args::default())?;
    let mut doc = command("cargo", &["doc", "--workspace", "--no-deps", "--locked"]);
    run::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// In the workspace a crate may lean on features that another one switched on; alone it may not.
fn each_alone() -> Done {
    for package in Workspace::read()?.crates() {
        cargo(&["check", "--locked", "-p", &package.name])?;
    }
    cargo(&["check", "--locked", "-p", "gen-worker", "--no-default-features"])?;
    cargo(&["check", "--locked", "-p", "gen-worker", "--all-features"])
}

fn cargo(args: &[&str]) -> Done {
    run::run(&mut command("cargo", args))
}
