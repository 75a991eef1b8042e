//! Whether schedulers can be reached, without a stream.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::{address::Address, session::endpoint, status::innermost};
use crate::config::RuntimeConfig;

/// Whether each scheduler of the settings takes a connection, TCP and TLS, within `patience`; else what keeps it from that. No
/// token is shown.
///
/// # Cancel safety
/// Dropping the future closes what was opened.
pub async fn reach(config: &RuntimeConfig, patience: Duration) -> Vec<(Address, Result<(), String>)> {
    join_all(config.addresses.iter().map(async |address| {
        let connected = async { endpoint(config, address, config.keepalive_interval)?.connect().await };
        let reached = match timeout(patience, connected).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(innermost(&error).to_string()),
            Err(_) => Err(format!("no answer within {} s", patience.as_secs_f64())),
        };
        (address.clone(), reached)
    }))
    .await
}
