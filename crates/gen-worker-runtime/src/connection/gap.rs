//! From the end of one stream to the next that is connected, and the one line that is logged about it.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::address::Address;

/// Where the time between two streams went.
#[derive(Debug)]
pub(super) struct Gap {
    /// Why the stream before ended.
    cause: String,
    /// How long that one was up.
    uptime: Duration,
    since: Instant,
    waiting: Duration,
    dialling: Duration,
    attempts: u32,
    /// How the last attempt failed; before there was one, the cause.
    last: String,
}

impl Gap {
    /// The gap after a stream that was up this long. The time before the first stream is one too.
    pub(super) fn after(cause: impl Into<String>, uptime: Duration) -> Self {
        let cause = cause.into();
        Self {
            last: cause.clone(),
            cause,
            uptime,
            since: Instant::now(),
            waiting: Duration::ZERO,
            dialling: Duration::ZERO,
            attempts: 0,
        }
    }

    /// Why there is no stream.
    pub(super) fn last(&self) -> &str {
        &self.last
    }

    pub(super) fn waited(&mut self, waiting: Duration) {
        self.waiting += waiting;
    }

    pub(super) fn dialled(&mut self, dialling: Duration) {
        self.dialling += dialling;
        self.attempts += 1;
    }

    /// Logs that there is a stream again.
    pub(super) fn connected(&self, address: &Address) {
        info!(
            %address,
            cause = self.cause,
            uptime_ms = self.uptime.as_millis() as u64,
            gap_ms = self.since.elapsed().as_millis() as u64,
            waiting_ms = self.waiting.as_millis() as u64,
            dialling_ms = self.dialling.as_millis() as u64,
            attempts = self.attempts,
            "connected"
        );
    }

    /// Logs that an attempt failed.
    pub(super) fn failed(&mut self, address: &Address, error: String) {
        warn!(
            %address,
            error,
            cause = self.cause,
            uptime_ms = self.uptime.as_millis() as u64,
            gap_ms = self.since.elapsed().as_millis() as u64,
            waiting_ms = self.waiting.as_millis() as u64,
            dialling_ms = self.dialling.as_millis() as u64,
            attempts = self.attempts,
            "not connected"
        );
        self.last = error;
    }
}
