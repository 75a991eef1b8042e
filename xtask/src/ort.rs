//! `ort`: the shared library of ONNX Runtime at .ort/lib, out of its Python wheel.

use std::env::consts::{ARCH, OS};
use std::fs;
use std::path::{Path, PathBuf};

use crate::run::{self, Doing, Done, command, root};
use crate::wheel;

const VERSION: &str = "1.31.1";

/// What the wheel for one platform holds. The digest is the library's: wheels differ, it does not.
struct Build {
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    packed: &'static str,
    library: &'static str,
    sha256: &'static str,
}

const BUILDS: [Build; 3] = [
    Build {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        packed: "libonnxruntime.so.1.31.1",
        library: "libonnxruntime.so",
        sha256: "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
    },
    Build {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        packed: "libonnxruntime.so.1.31.1",
        library: "libonnxruntime.so",
        sha256: "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
    },
    Build {
        os: "macos",
        arch: "aarch64",
        platform: "macosx_14_0_arm64",
        packed: "libonnxruntime.1.31.1.dylib",
        library: "libonnxruntime.dylib",
        sha256: "f8b06155feece624e55e49124340eea279da812529ae6fbc46a9f2be9c9cad2e",
    },
];

pub(crate) fn run() -> Done {
    let library = ensure()?;
    println!("{}", library.display());
    Ok(())
}

/// The library for tests: what `ORT_DYLIB_PATH` names, else the one at .ort/lib, fetched if need be.
pub(crate) fn library() -> Done<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
    match std::env::var_os("ORT_DYLIB_PATH") {
        Some(path) => Ok(path.into()),
        None => ensure(),
    }
}

fn ensure() -> Done<PathBuf> {
    put_in_place().map_err(|reason| {
        format!(
            "ONNX Runtime {VERSION} could not be put in place ({reason}): set ORT_DYLIB_PATH to the shared library \
            of an ONNX Runtime of 1.17 or newer"
        )
    })
}

fn put_in_place() -> Done<PathBuf> {
    let is_ours = |build: &&Build| build.os == OS && build.arch == ARCH;
    let build = BUILDS.iter().find(is_ours).ok_or(format!("no digest is known for {OS} {ARCH}"))?;
    let library = root().join(".ort/lib").join(build.library);
    if fs::read(&library).is_ok_and(|bytes| wheel::sha256(&bytes) == build.sha256) {
        eprintln!("ONNX Runtime {VERSION} is already in place");
        return Ok(library);
    }
    let dir = library.parent().expect("the library lies in a folder");
    fs::create_dir_all(dir).doing(dir.display())?;
    // Beside its destination, so that the rename is atomic.
    let unpacked = tempfile::tempdir_in(dir).doing(dir.display())?;
    download(build, unpacked.path())?;
    let found = unpacked.path().join("onnxruntime/capi").join(build.packed);
    wheel::check(&fs::read(&found).doing(build.packed)?, build.sha256)?;
    fs::rename(&found, &library).doing(library.display())?;
    Ok(library)
}

/// Fetches the wheel into `dir` and unpacks it there.
fn download(build: &Build, dir: &Path) -> Done {
    let wanted = format!("onnxruntime=={VERSION}");
    let mut pip =
        command("python3", &["-m", "pip", "--quiet", "download", "--no-deps", "--only-binary=:all:"]);
    pip.args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]);
    pip.args(["--platform", build.platform, "--dest"]).arg(dir).arg(wanted);
    run::run(&mut pip)?;
    wheel::unpack(dir)
}
