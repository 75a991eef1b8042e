//! `ci`: what must pass, in the order that fails fastest.

use crate::run::{self, Done, command};
use crate::{budget, deny, hack, pages, proto, test, tidy};

pub(crate) fn run() -> Done {
    cargo(&["fmt", "--all", "--check"])?;
    proto::check()?;
    tidy::run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    hack::alone()?;
    deny::run()?;
    budget::run()?;
    test::run()?;
    pages::run(&pages::Args::default())?;
    let mut doc = command("cargo", &["doc", "--workspace", "--no-deps", "--locked"]);
    run::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn cargo(args: &[&str]) -> Done {
    run::run(&mut command("cargo", args))
}
