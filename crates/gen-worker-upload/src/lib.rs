//! What a run leaves behind, brought to where it belongs.
//!
//! [`FileApi`] stores the files that a function saves while it works, under its run's own prefix and with that run's
//! credential. It measures before it sends: size against the cap, and a SHA-256 over all bytes.

mod config;
mod content;
mod error;
mod file_api;
mod mime;
mod output_ref;
#[cfg(test)]
mod testing;

pub use crate::{config::UploadConfig, error::UploadError, file_api::FileApi};
