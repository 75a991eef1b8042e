//! HTTP for gen-worker: checked addresses, bounded waits, retry classes, streams to verified files.
//!
//! Everything that leaves over HTTP goes through one [`HttpClient`]. A caller says where the address comes from
//! ([`Trust`]): one that a payload named is judged where it is dialled, on every hop. An [`HttpRequest`] carries its
//! credentials only to the origin they were given for; an [`HttpResponse`] is read within bounds, into memory or into
//! a [`FileSink`], which shows a file only once its size and digest are right.
//!
//! ```no_run
//! use gen_worker_core::config::{ConfigErrors, Env};
//! use gen_worker_net::{HttpClient, Method, NetConfig, NetError, Trust};
//!
//! # async fn example() -> Result<(), NetError> {
//! let config = NetConfig::from_env(&Env::default(), &mut ConfigErrors::default());
//! let client = HttpClient::new(config)?;
//! let url = "https://files.example/cat.png".parse().expect("a valid URL");
//! let response = client.request(Method::GET, url, Trust::Payload).send_retrying().await?;
//! let picture = response.into_success()?.bytes(1 << 20).await?;
//! # drop(picture);
//! # Ok(())
//! # }
//! ```

mod allow;
mod body;
mod client;
mod config;
mod error;
mod guard;
mod pace;
mod request;
mod response;
mod retry;
mod sink;
#[cfg(test)]
mod testing;

pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

pub use crate::{
    allow::{AllowList, AllowListError},
    body::{BodySource, OpenBody},
    client::{HttpClient, Trust},
    config::NetConfig,
    error::NetError,
    guard::{Forbidden, judge},
    request::HttpRequest,
    response::HttpResponse,
    sink::{Expected, FileSink, StoredFile},
};
