//! The version of the library, which `ort` does not tell. The only unsafe code of the crate.
#![expect(unsafe_code, reason = "the version is behind the library's C interface")]

use std::{ffi::CStr, path::Path};

use libloading::Library;
use ort::sys::OrtApiBase;

/// The version that the library of this path says it has. To be called once `ort` has loaded it.
pub(crate) fn version_of(path: &Path) -> Option<String> {
    // SAFETY: `ort` has loaded this library, so its initialisers ran before; it is never unloaded.
    let library = unsafe { Library::new(path) }.ok()?;
    // SAFETY: every release of ONNX Runtime exports this function with this type; `ort` calls it in the same way.
    let base =
        unsafe { library.get::<unsafe extern "system" fn() -> *const OrtApiBase>(b"OrtGetApiBase") }.ok()?;
    // SAFETY: the function returns a pointer to a constant of the library.
    let base = unsafe { base().as_ref() }?;
    // SAFETY: the function returns a constant text that ends with a zero.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    Some(version.to_string_lossy().into_owned())
}
