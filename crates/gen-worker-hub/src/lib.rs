//! Bytes in: model refs and input files to verified files on disk.
//!
//! A [`Hub`] is both ports. As a `ModelSource` it finds out where a model ref leads, downloads it with resume into a
//! work directory, checks it, and publishes the directory at once: a model's directory is absent or complete. As an
//! `InputSource` it makes a payload's file present in the run's directory, from the file API or from a public URL. A
//! credential goes only where it belongs: the hub's to the hub, a run's to the run's file API.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use gen_worker_core::{
//!     JobFailure, ModelRef,
//!     config::{ConfigErrors, Env},
//!     ports::{EventSink, ModelSource},
//! };
//! use gen_worker_hub::{Hub, HubConfig};
//! use gen_worker_net::{HttpClient, NetConfig};
//!
//! # async fn example(events: Arc<dyn EventSink>, model: ModelRef) -> Result<(), JobFailure> {
//! let (env, mut errors) = (Env::default(), ConfigErrors::default());
//! let client = HttpClient::new(NetConfig::from_env(&env, &mut errors))?;
//! let hub = Hub::new(HubConfig::from_env(&env, &mut errors), client);
//! let local = hub.ensure(&model, events).await?;
//! # drop(local);
//! # Ok(())
//! # }
//! ```

mod blocking;
mod bring;
mod cache;
mod config;
mod error;
mod fetch;
mod flight;
mod follow;
mod hub;
mod input;
mod meters;
mod part;
mod plan;
mod progress;
mod room;
mod select;
mod snapshot;
mod source;
mod store;
#[cfg(test)]
mod testing;
mod token;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub use crate::source::manifest::check as check_manifest;
pub use crate::{
    cache::{Cache, CachedModel, Freed, Mended},
    config::{HubApi, HubConfig},
    error::HubError,
    hub::Hub,
    meters::METRICS,
};
