//! The Rust of the repository's pages, compiled and run with the doc tests.

#[doc = include_str!("../../../README.md")]
struct Readme;

#[cfg(feature = "ort")]
#[doc = include_str!("../../../docs/authoring.md")]
struct Authoring;
