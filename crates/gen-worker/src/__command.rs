//! What the `gen-worker` command shares with the verbs of a worker. Nobody else may use it: it changes without notice.

#[cfg(any(test, feature = "fuzzing"))]
pub use crate::cozy_toml::check as check_cozy_toml;
#[cfg(feature = "dev")]
pub use crate::{
    call::{Call, CallArguments, CallError, Signature},
    signals::Signals,
};
pub use crate::{
    cozy_toml::{CozyMistake, CozyPlace, CozyToml},
    doctor::{DoctorArguments, doctor},
    lines::Stderr,
    nearest::{did_you_mean, quoted},
    tell::tell,
};
