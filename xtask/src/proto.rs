//! `proto`: .proto files to committed stubs, with neither protoc nor a build script.

mod clash;

use std::fs;
use std::path::{Path, PathBuf};

use protox::prost_reflect::DescriptorPool;
use tonic_prost_build::FileDescriptorSet;

use crate::run::{Doing, Done, root};

const FILES: [&str; 2] = ["worker_scheduler.proto", "frontend.proto"];
const STUBS: [&str; 2] = ["scheduler.rs", "frontend.rs"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Writes nothing; fails if the committed stubs are not what proto/ says
    #[arg(long)]
    check: bool,
    /// First takes the .proto files of this folder, unless they reuse or drop a number or a name
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    from: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Done {
    let protos = root().join("proto");
    if let Some(from) = &args.from {
        take(from, &protos)?;
    }
    if args.check { check() } else { write(&generate()?) }
}

/// Fails if the committed stubs are not what proto/ says.
pub(crate) fn check() -> Done {
    let is_stale =
        |(name, text): &(&str, String)| fs::read_to_string(committed(name)).ok().as_ref() != Some(text);
    match generate()?.into_iter().find(is_stale) {
        Some((name, _)) => Err(format!("{name} is not what proto/ says: run `cargo xtask proto`")),
        None => Ok(()),
    }
}

/// Copies the .proto files of `from` over ours if every message in the field still reads them.
fn take(from: &Path, protos: &Path) -> Done {
    let clashes = clash::between(&pool(protos)?, &pool(from)?);
    if !clashes.is_empty() {
        return Err(format!("{} breaks the contract:\n{}", from.display(), clashes.join("\n")));
    }
    for file in FILES {
        fs::copy(from.join(file), protos.join(file)).doing(format_args!("copying {file}"))?;
    }
    Ok(())
}

fn compile(dir: &Path) -> Done<FileDescriptorSet> {
    protox::compile(FILES, [dir]).doing(format_args!("reading {}", dir.display()))
}

fn pool(dir: &Path) -> Done<DescriptorPool> {
    DescriptorPool::from_file_descriptor_set(compile(dir)?).doing(format_args!("reading {}", dir.display()))
}

/// The stubs as (file name, text), in the order of `STUBS`.
fn generate() -> Done<Vec<(&'static str, String)>> {
    let dir = tempfile::tempdir().doing("making a temporary folder")?;
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .out_dir(dir.path())
        .compile_fds(compile(&root().join("proto"))?)
        .doing("generating the stubs")?;
    let read = |name| Ok((name, fs::read_to_string(dir.path().join(name)).doing(name)?));
    STUBS.into_iter().map(read).collect()
}

fn committed(name: &str) -> PathBuf {
    root().join("crates/gen-worker-proto/src/generated").join(name)
}

fn write(stubs: &[(&str, String)]) -> Done {
    for (name, text) in stubs {
        fs::write(committed(name), text).doing(name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_stubs_are_what_the_protos_say() {
        check().unwrap();
    }
}
