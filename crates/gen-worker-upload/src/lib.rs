//! What a run leaves behind, brought to where it belongs.
//!
//! Two ports of the runtime are served here. [`FileApi`] stores the files that a function saves while it works, under its
//! run's own prefix and with that run's credential. [`OutputTargets`] understands the `output_upload` of a payload and
//! stores the function's whole output there, with exactly the headers that were signed. Both check
//! the size before they send, hash all that they send, and go out by the same [`Transfers`], which bound how many requests
//! and buffers there are at once. What they give back exists only once the store has said yes.
//!
//! ```
//! use gen_worker_core::{FailureKind, config::{ConfigErrors, Env}, ports::OutputStore};
//! use gen_worker_net::{HttpClient, NetConfig};
//! use gen_worker_upload::{OutputTargets, Transfers, UploadConfig};
//!
//! let (env, mut errors) = (Env::default(), ConfigErrors::default());
//! let client = HttpClient::new(NetConfig::from_env(&env, &mut errors)).expect("TLS can be set up");
//! let config = UploadConfig::from_env(&env, &mut errors);
//! let targets = OutputTargets::new(&config, Transfers::new(&config, client));
//! let refused = targets.target(r#"{"put_url": "http://10.0.0.1/out"}"#.into()).map(drop);
//! assert_eq!(refused.unwrap_err().kind, FailureKind::Validation);
//! ```

mod config;
mod content;
mod error;
mod fields;
mod file_api;
mod meters;
mod mime;
#[cfg(feature = "s3")]
mod multipart;
mod output_ref;
mod presigned;
mod reader;
#[cfg(feature = "s3")]
mod s3;
mod signed_url;
mod source;
mod spool;
mod target;
#[cfg(test)]
mod testing;
mod transfer;
#[cfg(feature = "s3")]
mod unfinished;

#[cfg(all(feature = "s3", any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub use crate::s3::check_answer;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use crate::target::check as check_output_upload;
pub use crate::{
    config::UploadConfig, error::UploadError, file_api::FileApi, meters::METRICS, target::OutputTargets,
    transfer::Transfers,
};
