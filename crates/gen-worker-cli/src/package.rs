//! `gen-worker package`: a project as one archive that an image can be built from, the same bytes for the same input.

mod archive;
mod collect;
mod dockerfile;
mod secrets;

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Args;

use self::{archive::Entry, collect::collect};
use crate::{
    Failure,
    check::{Checked, check},
};

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
    /// A file that looks like a secret and is none; may be given several times
    #[arg(long, value_name = "PATH")]
    allow_secret: Vec<String>,
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what was made is for whoever asked for it")]
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let checked = check(&arguments.project, true)?;
    checked.findings.iter().for_each(|finding| eprintln!("{finding}"));
    let (Some(binary), Some(manifest)) =
        (&checked.binary, checked.manifest.as_ref().filter(|_| checked.is_fine()))
    else {
        return Ok(ExitCode::from(1));
    };
    let output = arguments.output.clone().unwrap_or_else(|| format!("{binary}.tar.gz").into());
    let output = std::path::absolute(output)?;
    let mut entries = collect(&checked.project.root, &[&checked.target, &output])?;
    let secrets = secrets::among(&entries, &arguments.allow_secret);
    if !secrets.is_empty() {
        secrets.iter().for_each(|secret| eprintln!("error: {secret}"));
        eprintln!("git ignores what .gitignore names; `--allow-secret PATH` packs one that is none");
        return Ok(ExitCode::from(1));
    }
    entries.retain(|entry| entry.path != MANIFEST);
    entries.push(Entry::text(MANIFEST, format!("{manifest:#}\n")));
    if arguments.dockerfile && !entries.iter().any(|entry| entry.path == "Dockerfile") {
        entries.push(Entry::text("Dockerfile", dockerfile(&checked, binary)));
    }
    let packed = archive::pack(entries)?;
    fs::write(&output, &packed).map_err(|error| format!("{}: {error}", output.display()))?;
    println!("{}", output.display());
    Ok(ExitCode::SUCCESS)
}

fn dockerfile(checked: &Checked, binary: &str) -> String {
    dockerfile::text(checked.cozy.base_image.as_deref(), binary)
}
