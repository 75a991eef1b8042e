//! The pinned ONNX Runtime.

use std::env::consts::{ARCH, OS};

use crate::{
    error::WheelError,
    wheel::{Packed, Wheel},
};

/// Its version.
pub const ORT_VERSION: &str = "1.31.1";

/// What models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Any processor.
    Cpu,
    /// NVIDIA cards. CUDA and cuDNN are not in the wheel: they must be on the machine.
    Cuda,
}

/// The wheel of ONNX Runtime for this machine.
///
/// # Errors
/// Nobody has pinned one for its platform.
pub fn onnx_runtime(device: Device) -> Result<Wheel, WheelError> {
    let remedy = "build ONNX Runtime 1.17 or newer for it, and set ORT_DYLIB_PATH to its library";
    onnx_runtime_for(device, OS, ARCH).ok_or(WheelError::Platform { os: OS, arch: ARCH, remedy })
}

/// The wheel of ONNX Runtime for another machine, as Rust names its system and processor; `None`: nobody has pinned one.
pub fn onnx_runtime_for(device: Device, os: &str, arch: &str) -> Option<Wheel> {
    let found = BUILDS.iter().find(|(of, on, for_arch, _)| (*of, *on, *for_arch) == (device, os, arch));
    found.map(|(.., wheel)| *wheel)
}

const LINUX: &str = "onnxruntime/capi/libonnxruntime.so.1.31.1";
const MACOS: &str = "onnxruntime/capi/libonnxruntime.1.31.1.dylib";

const BUILDS: [(Device, &str, &str, Wheel); 4] = [
    (
        Device::Cpu,
        "linux",
        "x86_64",
        Wheel {
            requirement: "onnxruntime==1.31.1",
            platform: "manylinux_2_28_x86_64",
            of_python: true,
            files: &[library(
                LINUX,
                "libonnxruntime.so",
                "fc44112fbe06d7d689c57e11d3862031f64711007e4ee020f8eed5185fd2c1d3",
            )],
        },
    ),
    (
        Device::Cpu,
        "linux",
        "aarch64",
        Wheel {
            requirement: "onnxruntime==1.31.1",
            platform: "manylinux_2_28_aarch64",
            of_python: true,
            files: &[library(
                LINUX,
                "libonnxruntime.so",
                "8aa3b76b28c778a2b1dd660d34161adb1d508c9ccd04ff9dc80e26eca5df8467",
            )],
        },
    ),
    (
        Device::Cpu,
        "macos",
        "aarch64",
        Wheel {
            requirement: "onnxruntime==1.31.1",
            platform: "macosx_14_0_arm64",
            of_python: true,
            files: &[library(
                MACOS,
                "libonnxruntime.dylib",
                "f8b06155feece624e55e49124340eea279da812529ae6fbc46a9f2be9c9cad2e",
            )],
        },
    ),
    (
        // Built against CUDA 13 and cuDNN 9.
        Device::Cuda,
        "linux",
        "x86_64",
        Wheel {
            requirement: "onnxruntime-gpu==1.31.1",
            platform: "manylinux_2_28_x86_64",
            of_python: true,
            files: &[
                library(
                    LINUX,
                    "libonnxruntime.so",
                    "5104254339ecadae808da771bd0b63b240f0dbd466514234905e54372435c303",
                ),
                library(
                    "onnxruntime/capi/libonnxruntime_providers_shared.so",
                    "libonnxruntime_providers_shared.so",
                    "086ec1d5388f64153d9c63470d126693db9a182c8ce236d3a1119068471b8a0d",
                ),
                library(
                    "onnxruntime/capi/libonnxruntime_providers_cuda.so",
                    "libonnxruntime_providers_cuda.so",
                    "d5290158115fa5569a3fe8f1f4037ee9b0e86658a96e52f852bbb7039aa88137",
                ),
            ],
        },
    ),
];

const fn library(path: &'static str, name: &'static str, sha256: &'static str) -> Packed {
    Packed { path, name, sha256, executable: false }
}
