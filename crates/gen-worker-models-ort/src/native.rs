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

/// Has the allocator of the system take each large piece of memory from the system, and give it back when it is freed. glibc
/// begins so, and moves the threshold up to 32 MiB by itself as pieces are freed: gigabytes of models that were evicted would stay
/// with the process, and what the next one takes of them would not be seen.
pub(crate) fn give_back_what_is_freed() {
    /// Where glibc begins.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    const LARGE: i32 = 128 << 10;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes two numbers, sets a parameter of later allocations under glibc's lock, and may be called from any thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
