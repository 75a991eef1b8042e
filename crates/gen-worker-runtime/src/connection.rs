//! The loop that keeps a stream to a scheduler: pick an address, hold a session, learn how it ended, wait.

mod address;
mod gap;
mod reach;
mod redirect;
mod session;
mod status;
mod tls;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use gen_worker_core::Backoff;
use tracing::{debug, info, warn};

pub use self::{
    address::{Address, AddressError},
    reach::reach,
    redirect::RedirectTarget,
    tls::ClientTls,
};
use self::{
    address::{Addresses, Next},
    gap::Gap,
    session::{Course, Session},
    status::Ended,
};
pub(crate) use self::{session::Link, tls::TlsVars};
use crate::{config::RuntimeConfig, shutdown::Phase};

/// How often in a row a scheduler may say that this worker may not connect, before the worker believes it.
const MAX_DENIALS: u32 = 5;

/// Longest time between pings. Stock gRPC servers allow one in five minutes; heartbeats go on meanwhile.
const MAX_PING_INTERVAL: Duration = Duration::from_secs(600);

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
    /// The scheduler said several times in a row that this worker may not connect.
    #[error("the scheduler at {address} does not let this worker connect: {message}")]
    Denied {
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
    gap: Gap,
    /// How often in a row the scheduler said that this worker may not connect, or that it is none.
    denials: u32,
    /// A scheduler has served this worker.
    was_served: bool,
    ping_interval: Duration,
}

/// What follows the end of a session.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// Nothing: the worker has left.
    Leave,
    /// The leader is dialled at once.
    Follow,
    /// The next address of the pass, after a wait if there was a stream.
    Next,
    /// A wait, and a long one.
    Rest,
}

impl Connection {
    pub(crate) fn new(config: Arc<RuntimeConfig>, link: Link) -> Self {
        Self {
            addresses: Addresses::new(config.addresses.clone(), config.redirect_allow.clone()),
            backoff: Backoff::new(
                config.reconnect_delay,
                config.reconnect_max_delay,
                config.reconnect_jitter,
            ),
            ping_interval: config.keepalive_interval,
            was_served: false,
            config,
            link,
            gap: Gap::after("the worker started", Duration::ZERO),
            denials: 0,
        }
    }

    /// Holds streams until the worker has flushed, or dialling again cannot help.
    pub(crate) async fn run(mut self) -> Result<(), ConnectionError> {
        loop {
            match self.addresses.next() {
                Next::Dial(address) => {
                    if self.hold(&address).await? == Then::Leave {
                        return Ok(());
                    }
                }
                Next::Wait => self.wait(Duration::ZERO).await?,
            }
            if self.link.shutdown.phase() >= Phase::Flushing && self.link.outbox.can_leave() {
                return Ok(());
            }
        }
    }

    /// One session, and the wait after it if one is due.
    async fn hold(&mut self, address: &Address) -> Result<Then, ConnectionError> {
        let session = Session::new(&self.config, &self.link, address, self.ping_interval, &mut self.gap);
        let Course { ended, uptime, answered } = session.run().await;
        self.link.meters.disconnected(ended.cause(uptime.is_some()));
        let stable = uptime.is_some_and(|uptime| uptime >= self.config.stable);
        if stable {
            self.backoff.reset();
        }
        // A peer that answers only to redirect must not be free to do so for ever.
        if answered && (stable || !matches!(ended, Ended::Redirected { .. })) {
            self.addresses.connected(address);
        }
        let is_denial = matches!(ended, Ended::Denied { .. } | Ended::Unimplemented { .. });
        if stable || (uptime.is_some() && !is_denial) {
            self.denials = 0;
        }
        self.was_served |= uptime.is_some() && !is_denial;
        let (then, cause) = self.judge(address, ended)?;
        match uptime {
            Some(uptime) => self.gap = Gap::after(cause, uptime),
            None if then == Then::Follow => {}
            None => self.gap.failed(address, cause),
        }
        match then {
            Then::Rest => self.wait(self.longest()).await?,
            Then::Next if uptime.is_some() => self.wait(Duration::ZERO).await?,
            Then::Next | Then::Follow | Then::Leave => {}
        }
        Ok(then)
    }

    /// What follows this end, and its cause in words.
    fn judge(&mut self, address: &Address, ended: Ended) -> Result<(Then, String), ConnectionError> {
        match ended {
            Ended::Left => Ok((Then::Leave, String::new())),
            Ended::Lost { cause } | Ended::Unauthenticated { cause } => Ok((Then::Next, cause)),
            Ended::TooManyPings { cause } => {
                self.ping_interval = (self.ping_interval * 2).min(MAX_PING_INTERVAL);
                info!(%address, interval_ms = self.ping_interval.as_millis() as u64, "pinging less often");
                Ok((Then::Next, cause))
            }
            Ended::Denied { cause } => match self.is_denied_for_good() {
                true => Err(ConnectionError::Denied { address: address.to_string(), message: cause }),
                false => Ok((Then::Next, cause)),
            },
            Ended::Unimplemented { message } if self.was_served && !self.is_denied_for_good() => {
                Ok((Then::Next, format!("Unimplemented: {message}")))
            }
            Ended::Superseded { cause } => {
                warn!(%address, worker_id = %self.config.worker_id, "another worker has this one's identity");
                Ok((Then::Rest, cause))
            }
            Ended::Redirected { leader } => Ok(match self.addresses.redirected(address, &leader) {
                Ok(()) => {
                    info!(%address, leader, "following a redirect");
                    (Then::Follow, format!("{address} redirected to {leader}"))
                }
                Err(why) => {
                    (Then::Next, format!("the redirect from {address} to `{leader}` was not followed: {why}"))
                }
            }),
            Ended::Unimplemented { message } | Ended::Refused { message } => {
                Err(ConnectionError::Protocol { address: address.to_string(), message })
            }
        }
    }

    /// Counts a denial, and says whether it is to be believed.
    fn is_denied_for_good(&mut self) -> bool {
        self.denials += 1;
        self.denials >= MAX_DENIALS
    }

    /// The longest delay between attempts; without a cap, a minute.
    fn longest(&self) -> Duration {
        let cap = self.config.reconnect_max_delay;
        if cap.is_zero() { Duration::from_secs(60) } else { cap }
    }

    /// Waits as long as the failures so far ask for; a worker that leaves with something to say waits less.
    async fn wait(&mut self, at_least: Duration) -> Result<(), ConnectionError> {
        let leaving = self.link.shutdown.phase() >= Phase::Flushing;
        let most = if leaving { LAST_TRY } else { Duration::MAX };
        let delay = self.backoff.next(fastrand::f64()).max(at_least).min(most);
        let attempts = self.backoff.failures();
        if self.config.max_reconnect_attempts.is_some_and(|max| attempts >= max.get()) {
            return Err(ConnectionError::Exhausted { attempts, cause: self.gap.last().to_owned() });
        }
        debug!(
            attempts,
            delay_ms = delay.as_millis() as u64,
            cause = self.gap.last(),
            "waiting before the next connection attempt"
        );
        let since = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.link.shutdown.reached(Phase::Flushing), if !leaving => {}
        }
        self.gap.waited(since.elapsed());
        self.addresses.waited();
        Ok(())
    }
}
