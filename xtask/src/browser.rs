//! `browser`: a Chromium for the tests of the dashboard: the one of this machine, else Debian's package.

use std::env::split_paths;
use std::path::PathBuf;

use crate::run::{self, Done, command};

/// The names under which systems have it.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// Waits for whoever else installs something.
const INSTALL: &[&str] =
    &["-o", "DPkg::Lock::Timeout=300", "install", "--yes", "--no-install-recommends", "chromium"];

const REMEDY: &str = "install `chromium`, or set CHROMIUM_PATH to a Chromium or Chrome of 125 or newer";

pub(crate) fn run() -> Done {
    println!("{}", program()?.display());
    Ok(())
}

/// The program for tests: what `CHROMIUM_PATH` names, else what is on the path, else what `apt-get` installs.
pub(crate) fn program() -> Done<PathBuf> {
    if let Some(path) = variable("CHROMIUM_PATH") {
        return Ok(path.into());
    }
    if let Some(path) = on_path() {
        return Ok(path);
    }
    install().map_err(|reason| format!("there is no browser ({reason}): {REMEDY}"))?;
    on_path().ok_or_else(|| format!("the package has no browser of a known name: {REMEDY}"))
}

fn install() -> Done {
    run::run(&mut command("apt-get", &["update"]))?;
    run::run(command("apt-get", INSTALL).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn on_path() -> Option<PathBuf> {
    let folders: Vec<_> = split_paths(&variable("PATH")?).collect();
    let places = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.into_iter().find(|place| place.is_file())
}

#[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}
