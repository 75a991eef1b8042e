//! The kinds of places that models come from.

pub(crate) mod direct;
pub(crate) mod local;
