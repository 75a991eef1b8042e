//! What is behind C interfaces: the version of the library, which `ort` does not tell, and the allocator of the system. The only
//! unsafe code of the crate.
#![expect(unsafe_code, reason = "they are behind C interfaces")]

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

/// Gives memory that is free back to the system. glibc keeps what was freed for the process: gigabytes of models that were evicted
/// would count as used, and what the next one takes of them would not be seen.
pub(crate) fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, touches free memory only, and may be called from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
