//! The Rust of the repository's pages, compiled and run with the doc tests.

#[doc = include_str!("../../../README.md")]
struct Readme;

#[cfg(all(feature = "ort", feature = "testing"))]
#[doc = include_str!("../../../docs/authoring.md")]
struct Authoring;

#[cfg(feature = "ort")]
#[doc = include_str!("../../../docs/migration.md")]
struct Migration;

#[cfg(feature = "testing")]
#[doc = include_str!("../../../docs/testing.md")]
struct Testing;
