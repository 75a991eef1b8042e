//! A tenant's project, as cargo sees it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;
use serde_json::Value;

/// What `cargo metadata` says of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    /// Where it is built.
    #[serde(default)]
    pub(crate) target_directory: PathBuf,
    /// The folder of the workspace that it belongs to; its own, if to no other.
    #[serde(default)]
    pub(crate) workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// `None`: it lies in a folder.
    pub(crate) source: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    targets: Vec<Target>,
    default_run: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The folder that it lies in; `None`: it comes from elsewhere.
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Package {
    /// The folder that holds it.
    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }

    /// The binary that is the worker.
    pub(crate) fn binary(&self) -> Result<&str, String> {
        let binaries = self.targets.iter().filter(|target| target.kind.iter().any(|kind| kind == "bin"));
        let binaries: Vec<&str> = binaries.map(|target| target.name.as_str()).collect();
        match (self.default_run.as_deref(), binaries.as_slice()) {
            (Some(binary), _) => Ok(binary),
            (None, [binary]) => Ok(binary),
            (None, []) => {
                Err(format!("{} has no binary: a worker is one, with `gen_worker::main!();`", self.name))
            }
            (None, _) => Err(format!(
                "{} has several binaries, {}: say in Cargo.toml which is the worker, `default-run = \"…\"`",
                self.name,
                binaries.join(", "),
            )),
        }
    }
}

/// A folder with a manifest.
#[derive(Debug)]
pub(crate) struct Project {
    /// Absolute, without links.
    pub(crate) root: PathBuf,
}

impl Project {
    /// What the manifests of the project itself say; nothing is resolved.
    pub(crate) fn declared(&self) -> Result<Metadata, String> {
        self.metadata(&["--no-deps"])
    }

    /// Everything that it is built from, exactly as `Cargo.lock` says.
    pub(crate) fn resolved(&self) -> Result<Metadata, String> {
        self.metadata(&["--locked"])
    }

    fn metadata(&self, arguments: &[&str]) -> Result<Metadata, String> {
        let output = self.cargo(&["metadata", "--format-version=1"]).args(arguments).output();
        let text = succeeded(output)?;
        serde_json::from_slice(&text).map_err(|error| format!("what cargo says is not understood: {error}"))
    }

    /// What the project's own worker says of its functions. Builds it; what cargo says goes to stderr.
    pub(crate) fn manifest(&self, binary: &str) -> Result<Value, String> {
        let arguments = ["run", "--quiet", "--locked", "--bin", binary, "--", "list", "--json"];
        let text = succeeded(self.cargo(&arguments).stderr(Stdio::inherit()).output())?;
        serde_json::from_slice(&text).map_err(|_| {
            format!("`{binary} list --json` prints no manifest: its `main` must be `gen_worker::main!();`")
        })
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).current_dir(&self.root).stdin(Stdio::null());
        cargo
    }
}

/// What a program printed, unless it failed.
fn succeeded(output: std::io::Result<std::process::Output>) -> Result<Vec<u8>, String> {
    let output = output.map_err(|error| format!("cargo cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    match said.trim() {
        "" => Err(format!("cargo: {}", output.status)),
        said => Err(said.strip_prefix("error: ").unwrap_or(said).to_owned()),
    }
}
