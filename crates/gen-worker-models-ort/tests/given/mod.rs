//! What the tests are given.

use std::path::PathBuf;

/// The library; `None`: the one that is found.
pub(crate) fn library() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "a test has no settings of its own")]
    std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from)
}
