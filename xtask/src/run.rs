//! What the chores share: where the repository is, how a failure is said.

use std::fmt::Display;
use std::path::PathBuf;

/// A chore is done, or a sentence says why not.
pub(crate) type Done<T = ()> = Result<T, String>;

/// Says what was being done when something failed.
pub(crate) trait Doing<T> {
    /// Turns the error into a sentence that begins with `what`.
    fn doing(self, what: impl Display) -> Done<T>;
}

impl<T, E: Display> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Done<T> {
        self.map_err(|error| format!("{what}: {error}"))
    }
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the repository").to_owned()
}
