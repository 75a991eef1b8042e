//! `gen-worker package`: a project as one archive that an image can be built from, the same bytes for the same input.

mod archive;
mod collect;
mod dockerfile;
mod secrets;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use gen_worker::__command::CozyToml;
use gen_worker_wheel::Device;
use serde_json::Value;

use self::{archive::Entry, collect::collect};
use crate::{
    Failure,
    check::{Checked, SECRET_SETTING, check},
};

/// Where the project's settings are.
const COZY: &str = "cozy.toml";

/// Where the manifest lies in the archive, and in the image.
const MANIFEST: &str = ".cozy/manifest.json";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The project's folder
    #[arg(default_value = ".")]
    project: PathBuf,
    /// The archive; else the worker's name with `.tar.gz`, in this folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Put a Dockerfile into it, unless the project has one
    #[arg(long)]
    dockerfile: bool,
    /// A file that looks like a secret and is packed all the same; cozy.toml, if it has credentials. May be given several
    /// times
    #[arg(long, value_name = "PATH")]
    allow_secret: Vec<String>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what was made is for whoever asked for it")]
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let mut checked = check(&arguments.project, true)?;
    let is_allowed = |path: &str| arguments.allow_secret.iter().any(|allowed| allowed == path);
    let mut needless: BTreeSet<&str> = arguments.allow_secret.iter().map(String::as_str).collect();
    if is_allowed(COZY) && checked.findings.iter().any(|finding| finding.code == SECRET_SETTING) {
        checked.findings.retain(|finding| finding.code != SECRET_SETTING);
        needless.remove(COZY);
    }
    checked.findings.iter().for_each(|finding| eprintln!("{finding}"));
    let (Some(binary), Some(manifest)) =
        (&checked.binary, checked.manifest.as_ref().filter(|_| checked.is_fine()))
    else {
        return Ok(ExitCode::from(1));
    };
    let output = arguments.output.clone().unwrap_or_else(|| format!("{binary}.tar.gz").into());
    let output = std::path::absolute(output)?;
    let mut entries = collect(&checked.project.root, &[&checked.target, &output, &real(&output)])?;
    let (allowed, refused): (Vec<_>, Vec<_>) =
        secrets::among(&entries).into_iter().partition(|suspect| is_allowed(suspect.path));
    allowed.iter().for_each(|suspect| _ = needless.remove(suspect.path));
    for path in needless {
        eprintln!("warning: --allow-secret {path}: there is no such secret in the project");
    }
    if !refused.is_empty() {
        refused.iter().for_each(|suspect| eprintln!("error: {suspect}"));
        eprintln!("git ignores what .gitignore names; `--allow-secret PATH` packs one that is none");
        return Ok(ExitCode::from(1));
    }
    entries.retain(|entry| entry.path != MANIFEST);
    entries.push(Entry::text(MANIFEST, format!("{manifest:#}\n")));
    if arguments.dockerfile && !entries.iter().any(|entry| entry.path == "Dockerfile") {
        entries.push(Entry::text("Dockerfile", dockerfile(&checked, binary, manifest)));
    }
    let packed = archive::pack(entries)?;
    fs::write(&output, &packed).map_err(|error| format!("{}: {error}", output.display()))?;
    println!("{}", output.display());
    Ok(ExitCode::SUCCESS)
}

/// Where a file really is, or would be, whatever links lead there.
fn real(path: &Path) -> PathBuf {
    let folder = || Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?));
    fs::canonicalize(path).ok().or_else(folder).unwrap_or_else(|| path.to_owned())
}

fn dockerfile(checked: &Checked, binary: &str, manifest: &Value) -> String {
    let runtime = takes_models_in_memory(manifest).then(|| device(&checked.cozy));
    dockerfile::text(checked.cozy.base_image.as_deref(), binary, runtime)
}

/// Whether a function takes a model that ONNX Runtime has in memory; others only take its files.
fn takes_models_in_memory(manifest: &Value) -> bool {
    let functions = manifest["functions"].as_array().into_iter().flatten();
    let mut injections = functions.filter_map(|function| function["injection_json"].as_array()).flatten();
    injections.any(|injection| injection["type"].as_str().is_some_and(|name| name.ends_with("OrtModel")))
}

/// What the project's settings say that models run on.
fn device(cozy: &CozyToml) -> Device {
    let providers = cozy.worker.get("WORKER_ORT_PROVIDERS").map(|text| text.to_ascii_lowercase());
    match providers.is_some_and(|text| text.contains("cuda") || text.contains("tensorrt")) {
        true => Device::Cuda,
        false => Device::Cpu,
    }
}
