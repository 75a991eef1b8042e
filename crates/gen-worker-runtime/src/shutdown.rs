//! From the first signal to the last word.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tracing::info;

/// Where the worker stands. It only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Taking runs.
    Running,
    /// Taking no more; those that run may finish.
    Draining,
    /// Every run was told to stop.
    Canceling,
    /// Every run has ended; what is left to say is said.
    Flushing,
}

/// Tells the worker to leave, and everybody in it how far it is. Clones share the phase.
#[derive(Debug, Clone)]
pub struct Shutdown {
    phase: Arc<watch::Sender<Phase>>,
    drain_for: Arc<watch::Sender<Option<Duration>>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { phase: Arc::new(watch::Sender::new(Phase::Running)), drain_for: Arc::default() }
    }
}

impl Shutdown {
    /// A worker that stays.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes no more runs and leaves when those that run have ended, at the latest after the drain timeout.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Tells every run to stop, and leaves when they have.
    pub fn cancel(&self) {
        self.advance(Phase::Canceling);
    }

    /// Where the worker stands.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Drains, but for no longer than this.
    pub(crate) fn drain_for(&self, bound: Option<Duration>) {
        self.drain_for.send_replace(bound);
        self.drain();
    }

    /// The bound that a drain command set.
    pub(crate) fn bound(&self) -> Option<Duration> {
        *self.drain_for.borrow()
    }

    /// Turns SIGTERM and SIGINT into a drain, and a second one into a cancel. Returns only if signals cannot be heard.
    pub(crate) async fn heed_signals(&self) {
        let Ok(mut signals) = Signals::listen() else { return };
        signals.next().await;
        info!("asked to leave by a signal; a second one cancels what runs");
        self.drain();
        loop {
            signals.next().await;
            self.cancel();
        }
    }

    pub(crate) fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let moves = *phase < to;
            if moves {
                *phase = to;
            }
            moves
        });
    }

    /// Waits until the worker is at least this far.
    pub(crate) async fn reached(&self, at_least: Phase) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|phase| *phase >= at_least).await;
    }

    /// Waits until the phase is past `seen`, and says which it is.
    pub(crate) async fn changed(&self, seen: Phase) -> Phase {
        let mut phase = self.phase.subscribe();
        phase.wait_for(|phase| *phase > seen).await.map_or(Phase::Flushing, |phase| *phase)
    }
}

#[cfg(unix)]
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_phase_only_moves_on() {
        let shutdown = Shutdown::new();
        shutdown.cancel();
        shutdown.drain();
        assert_eq!(shutdown.phase(), Phase::Canceling);
        assert_eq!(shutdown.changed(Phase::Running).await, Phase::Canceling);
        shutdown.reached(Phase::Draining).await;
    }
}
