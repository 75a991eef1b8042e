//! `docs`: writes `docs/configuration.md` from the tables that settings are read through.

use crate::run::{self, Done, command};

pub(crate) fn run() -> Done {
    let test = ["test", "--locked", "-p", "gen-worker", "--lib", "the_configuration_page_is_up_to_date"];
    run::run(command("cargo", &test).env("UPDATE_DOCS", "1"))
}
