//! The members of the workspace, as cargo sees them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::run::{Doing, Done, command, output, root};

#[derive(Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
}

#[derive(Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    #[serde(default)]
    pub(crate) targets: Vec<Target>,
}

#[derive(Deserialize)]
pub(crate) struct Target {
    /// `bin`, `lib`, `proc-macro`, `test` and others.
    pub(crate) kind: Vec<String>,
}

#[derive(Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `dev` or `build`; `None` is a normal one.
    pub(crate) kind: Option<String>,
    pub(crate) optional: bool,
}

impl Workspace {
    pub(crate) fn read() -> Done<Self> {
        let args = ["metadata", "--no-deps", "--format-version", "1"];
        let metadata = output(&mut command("cargo", &args))?;
        serde_json::from_str(&metadata).doing("reading cargo's metadata")
    }

    /// The crates that are published, unlike tests, examples and chores.
    pub(crate) fn crates(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.dir().starts_with("crates"))
    }
}

impl Package {
    /// The folder of the package within the repository: `crates/gen-worker-core`.
    pub(crate) fn dir(&self) -> &Path {
        let dir = self.manifest_path.parent().expect("a manifest lies in a folder");
        dir.strip_prefix(root()).unwrap_or(dir)
    }

    /// Whether others can build upon it.
    pub(crate) fn is_library(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "lib"))
    }

    /// Whether something of it can be run.
    pub(crate) fn has_program(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "bin"))
    }
}
