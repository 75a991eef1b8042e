//! Who a worker is and whom it believes.
//!
//! [`AuthConfig`] holds the worker's token, or the file it lies in, and where the scheduler's keys are published. [`check`]
//! verifies the token at start, and gives the [`Credential`] from which each dial takes its bearer; a token that the file
//! or the scheduler brings later is verified in the same way before it takes the place of the one held. Verifying is a pure function of the token,
//! the keys, the policy and the time; around it lies a cache of the published keys. Whatever cannot be verified is
//! refused.
//!
//! ```
//! use gen_worker_auth::AuthConfig;
//! use gen_worker_core::config::{ConfigErrors, Env};
//!
//! let env = Env::from_iter([("WORKER_JWT", "header.claims.signature")]);
//! let config = AuthConfig::from_env(&env, &mut ConfigErrors::default());
//! assert!(config.token.is_some() && config.jwks_url.is_none());
//! ```

mod cache;
mod config;
mod credential;
mod error;
mod file;
#[cfg(test)]
mod fixture;
mod jwks;
mod verify;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use crate::verify::check as check_keys_and_token;
pub use crate::{
    config::AuthConfig,
    credential::{Credential, check},
    error::AuthError,
};
