//! `gen-worker check`: whether a project can be built and deployed elsewhere. Everything that is wrong is said at once.

mod finding;
mod functions;
mod paths;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use gen_worker::__command::{CozyPlace, CozyToml};
use serde_json::{Value, json};

/// The code of a credential in cozy.toml.
pub(crate) const SECRET_SETTING: &str = "secret_setting";

pub(crate) use self::finding::{Finding, Level};
use crate::{
    Failure,
    project::{Metadata, Project},
};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    /// Say it for programs
    #[arg(long)]
    json: bool,
    /// Leave out what takes a build: whether modules have functions and models have keys
    #[arg(long)]
    no_build: bool,
}

/// What was looked at, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) project: Project,
    pub(crate) cozy: CozyToml,
    /// The binary that is the worker; `None`: there is no such.
    pub(crate) binary: Option<String>,
    /// Where it is built.
    pub(crate) target: PathBuf,
    /// What the worker says of itself; `None`: it was not asked, or could not be.
    pub(crate) manifest: Option<Value>,
    pub(crate) findings: Vec<Finding>,
}

impl Checked {
    /// Whether nothing is wrong that must be mended.
    pub(crate) fn is_fine(&self) -> bool {
        self.findings.iter().all(|finding| finding.level == Level::Warning)
    }
}

#[expect(clippy::print_stdout, reason = "the answer is for whoever typed the command")]
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let checked = check(&arguments.project, !arguments.no_build)?;
    if arguments.json {
        println!("{:#}", json!({"ok": checked.is_fine(), "findings": checked.findings}));
    } else {
        checked.findings.iter().for_each(|finding| println!("{finding}"));
        println!("{}", if checked.is_fine() { "ready to be packaged" } else { "not ready to be packaged" });
    }
    Ok(ExitCode::from(u8::from(!checked.is_fine())))
}

/// Looks at the project in this folder.
pub(crate) fn check(folder: &Path, build: bool) -> Result<Checked, Failure> {
    let root = fs::canonicalize(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut findings = Vec::new();
    let cozy = cozy_toml(&root, &mut findings);
    let target = root.join("target");
    let mut checked =
        Checked { project: Project { root }, cozy, binary: None, target, manifest: None, findings };
    checked.look_at_files();
    if checked.has("Cargo.toml") {
        checked.look_at_packages(build);
    }
    Ok(checked)
}

fn cozy_toml(root: &Path, findings: &mut Vec<Finding>) -> CozyToml {
    let text = match fs::read_to_string(root.join("cozy.toml")) {
        Ok(text) => text,
        Err(error) => {
            let remedy = "it says in `[functions] modules` where the functions are";
            findings.push(Finding::error("missing_cozy_toml", format!("cozy.toml: {error}: {remedy}")));
            return CozyToml::default();
        }
    };
    let (cozy, mistakes) = CozyToml::parse(&text);
    let is_told = mistakes
        .iter()
        .any(|mistake| matches!(mistake.place, CozyPlace::Text | CozyPlace::Table("functions")));
    if cozy.modules.is_empty() && !is_told {
        let text = "cozy.toml names no module: say in `[functions] modules` where the functions are";
        findings.push(Finding::error("no_modules", text));
    }
    findings.extend(mistakes.into_iter().map(Finding::from));
    let credentials = cozy.credentials.iter().cloned().map(Finding::from);
    findings.extend(credentials.map(|finding| Finding { code: SECRET_SETTING, ..finding }));
    cozy
}

impl Checked {
    fn look_at_files(&mut self) {
        if !self.has("Cargo.toml") {
            let text = "Cargo.toml is missing: this is no project, `gen-worker new` makes one";
            self.findings.push(Finding::error("missing_cargo_toml", text));
        }
        if self.has("requirements.txt") {
            let text = "requirements.txt is not supported: dependencies are in Cargo.toml and Cargo.lock";
            self.findings.push(Finding::error("requirements_txt", text));
        }
    }

    fn has(&self, name: &str) -> bool {
        self.project.root.join(name).is_file()
    }

    fn look_at_packages(&mut self, build: bool) {
        let declared = match self.project.declared() {
            Ok(declared) => declared,
            Err(said) => return self.findings.push(Finding::error("cargo_toml", said)),
        };
        self.findings.extend(paths::that_leave(&self.project.root, &declared));
        self.target.clone_from(&declared.target_directory);
        match self.binary_of(&declared) {
            Ok(binary) => self.binary = Some(binary),
            Err(text) => self.findings.push(Finding::error("binary", text)),
        }
        if !self.has("Cargo.lock") {
            return self.findings.push(self.missing_lock(&declared));
        }
        match self.project.resolved() {
            Ok(resolved) => self.findings.extend(paths::that_are_elsewhere(&self.project.root, &resolved)),
            Err(said) => return self.findings.push(stale_lock(&said)),
        }
        if build {
            self.look_at_functions();
        }
    }

    fn look_at_functions(&mut self) {
        let Some(binary) = &self.binary else { return };
        match self.project.manifest(binary) {
            Ok(manifest) => {
                self.findings.extend(functions::mistakes(&self.cozy, &manifest));
                self.manifest = Some(manifest);
            }
            Err(said) => self.findings.push(Finding::error("build", said)),
        }
    }

    fn missing_lock(&self, declared: &Metadata) -> Finding {
        let text = match declared.workspace_root == self.project.root {
            true => "Cargo.lock is missing: run `cargo generate-lockfile`, and keep it with the project"
                .to_owned(),
            false => format!(
                "Cargo.lock is missing: the project belongs to the workspace in {}. Give it one of its own, with an \
                 empty `[workspace]` in Cargo.toml, and run `cargo generate-lockfile`",
                declared.workspace_root.display(),
            ),
        };
        Finding::error("missing_cargo_lock", text)
    }

    /// Of the package that lies in the project's own folder.
    fn binary_of(&self, declared: &Metadata) -> Result<String, String> {
        let own = declared.packages.iter().find(|package| package.folder() == self.project.root);
        let own = own.ok_or("Cargo.toml is no package: a worker has a `[package]`")?;
        own.binary().map(str::to_owned)
    }
}

fn stale_lock(said: &str) -> Finding {
    if said.contains("--locked") {
        let text =
            "Cargo.lock is not up to date: run `cargo update --workspace`, and keep it with the project";
        return Finding::error("stale_cargo_lock", text);
    }
    Finding::error("dependencies", said)
}
