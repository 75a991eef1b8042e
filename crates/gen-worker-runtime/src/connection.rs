//! The loop that keeps a stream to a scheduler: pick an address, hold a session, learn how it ended, wait.

mod address;
mod session;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gen_worker_core::Backoff;
use tracing::{info, warn};

pub use self::address::{Address, AddressError};
pub(crate) use self::session::Link;
use self::{
    address::{Addresses, Next},
    session::{Ended, Session},
};
use crate::{config::RuntimeConfig, shutdown::Phase};

/// Uptime after which earlier failures are forgotten. A stream that opens and dies at once must not reset the backoff.
const STABLE: Duration = Duration::from_secs(60);

/// Delay between connection attempts of a worker that only has results left to hand over.
const LAST_TRY: Duration = Duration::from_millis(500);

/// Why the worker stopped dialling.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The scheduler does not speak this protocol; dialling again will not help.
    #[error("the scheduler at {address} does not speak this worker's protocol: {message}")]
    Protocol {
        /// Which scheduler.
        address: String,
        /// What it said.
        message: String,
    },
    /// `MAX_RECONNECT_ATTEMPTS` failures in a row.
    #[error("gave up after {attempts} failed connection attempts; the last: {cause}")]
    Exhausted {
        /// How many.
        attempts: u32,
        /// How the last one failed.
        cause: String,
    },
}

pub(crate) struct Connection {
    config: Arc<RuntimeConfig>,
    link: Link,
    addresses: Addresses,
    backoff: Backoff,
}

impl Connection {
    pub(crate) fn new(config: Arc<RuntimeConfig>, link: Link) -> Self {
        Self {
            addresses: Addresses::new(config.addresses.clone()),
            backoff: Backoff::new(
                config.reconnect_delay,
                config.reconnect_max_delay,
                config.reconnect_jitter,
            ),
            config,
            link,
        }
    }

    /// Holds streams until the worker has flushed, or dialling again cannot help.
    pub(crate) async fn run(mut self) -> Result<(), ConnectionError> {
        let mut cause = String::from("no address was tried");
        loop {
            match self.addresses.next() {
                Next::Dial(address) => match self.hold(address).await? {
                    Some(why) => cause = why,
                    None => return Ok(()),
                },
                Next::Wait => self.wait(&cause).await?,
            }
            if self.link.shutdown.phase() >= Phase::Flushing && self.link.outbox.is_said() {
                return Ok(());
            }
        }
    }

    /// One session. `Ok(None)`: the worker said everything and left.
    async fn hold(&mut self, address: Address) -> Result<Option<String>, ConnectionError> {
        let since = Instant::now();
        let session = Session::open(&self.config, &self.link, &address);
        let (connected, ended) = session.run().await;
        if connected {
            self.addresses.connected(&address);
            if since.elapsed() >= STABLE {
                self.backoff.reset();
            }
        }
        let uptime_ms = since.elapsed().as_millis() as u64;
        match ended {
            Ended::Left => Ok(None),
            Ended::Refused { message } => {
                Err(ConnectionError::Protocol { address: address.to_string(), message })
            }
            Ended::Redirected { leader } => {
                let followed = self.addresses.redirected(&address, &leader);
                info!(%address, leader, followed, "the scheduler named another leader");
                Ok(Some(format!("{address} is not the leader")))
            }
            Ended::Lost { cause } => {
                warn!(%address, connected, uptime_ms, cause, "the stream ended");
                if connected {
                    self.wait(&cause).await?;
                }
                Ok(Some(cause))
            }
        }
    }

    /// Waits as long as the failures so far ask for; a worker that leaves with something to say waits less.
    async fn wait(&mut self, cause: &str) -> Result<(), ConnectionError> {
        let leaving = self.link.shutdown.phase() >= Phase::Flushing;
        let delay = self.backoff.next(fastrand::f64()).min(if leaving { LAST_TRY } else { Duration::MAX });
        let attempts = self.backoff.failures();
        if self.config.max_reconnect_attempts.is_some_and(|max| attempts >= max.get()) {
            return Err(ConnectionError::Exhausted { attempts, cause: cause.to_owned() });
        }
        info!(attempts, delay_ms = delay.as_millis() as u64, "waiting before the next connection attempt");
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.link.shutdown.reached(Phase::Flushing), if !leaving => {}
        }
        Ok(())
    }
}
