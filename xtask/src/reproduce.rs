//! `reproduce`: whether a program is the same bytes wherever it is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::run::{self, Doing, Done, command, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The package with the program
    #[arg(long, default_value = "hello")]
    package: String,
    /// The program; unset, it has the package's name
    #[arg(long)]
    bin: Option<String>,
    /// Without whole-program optimisation, in a tenth of the time
    #[arg(long)]
    fast: bool,
}

/// Of different lengths: a path that is left in shifts what follows.
const FOLDERS: [&str; 2] = ["one", "another-one"];

/// Builds what is committed, twice, from two folders of the sources.
pub(crate) fn run(args: &Args) -> Done {
    let base = root().join("target/reproduce");
    let built = FOLDERS.map(|name| build(args, &base.join(name)));
    let [one, another] = built;
    let (one, another) = (one?, another?);
    let [first, second] = [&one, &another].map(|program| fs::read(program).doing(program.display()));
    let (first, second) = (first?, second?);
    println!("{} bytes: {}", first.len(), one.display());
    println!("{} bytes: {}", second.len(), another.display());
    if first != second {
        return Err("they differ: compare them with `cmp -l` or diffoscope".to_owned());
    }
    println!("they are the same");
    Ok(())
}

/// The program, built in `folder` with nothing of the folder in it.
fn build(args: &Args, folder: &Path) -> Done<PathBuf> {
    let (source, target) = (folder.join("source"), folder.join("target"));
    if source.exists() {
        fs::remove_dir_all(&source).doing(source.display())?;
    }
    fs::create_dir_all(&source).doing(source.display())?;
    unpack(&source)?;
    let profile = if args.fast { "bench-fast" } else { "release" };
    let mut cargo =
        command("cargo", &["build", "--locked", "--quiet", "--profile", profile, "--package", &args.package]);
    cargo.current_dir(&source).env("CARGO_TARGET_DIR", &target).env("CARGO_INCREMENTAL", "0");
    // As for rustc, so for the C that some crates bring; the rest of what cargo builds lies outside of both.
    let folders = [(&source, "/source"), (&target, "/target")];
    let flags =
        |option: &str| folders.map(|(from, to)| format!("{option}={}={to}", from.display())).join(" ");
    cargo.env("RUSTFLAGS", flags("--remap-path-prefix")).env("CFLAGS", flags("-ffile-prefix-map"));
    // C writes down when it was compiled, which then is when the sources were committed.
    cargo.env("SOURCE_DATE_EPOCH", committed()?);
    run::run(&mut cargo)?;
    Ok(target.join(profile).join(args.bin.as_ref().unwrap_or(&args.package)))
}

/// When that was, in seconds since 1970.
fn committed() -> Done<String> {
    let said = command("git", &["log", "-1", "--format=%ct"]).output().doing("git log")?;
    Ok(String::from_utf8_lossy(&said.stdout).trim().to_owned())
}

/// What is committed, without what is not.
fn unpack(folder: &Path) -> Done {
    let mut archive =
        command("git", &["archive", "HEAD"]).stdout(Stdio::piped()).spawn().doing("git archive")?;
    let packed = archive.stdout.take().expect("it is piped");
    run::run(Command::new("tar").arg("-x").current_dir(folder).stdin(packed))?;
    let packed = archive.wait().doing("git archive")?;
    if packed.success() { Ok(()) } else { Err(format!("git archive: {packed}")) }
}
