//! `docs`: writes the pages that are made from tables of the code: settings and metrics.

use crate::run::{self, Done, command};

pub(crate) fn run() -> Done {
    let test = ["test", "--locked", "-p", "gen-worker", "--lib", "page_is_up_to_date"];
    run::run(command("cargo", &test).env("UPDATE_DOCS", "1"))
}
