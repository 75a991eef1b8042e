//! From the first signal to the last word.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::sleep_until};
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

#[derive(Debug, Clone, Copy)]
struct State {
    phase: Phase,
    /// When runs must have ended; `None`: whenever they do.
    deadline: Option<Instant>,
}

/// Tells the worker to leave, and everybody in it how far it is. Clones share the state.
#[derive(Debug, Clone)]
pub struct Shutdown {
    state: Arc<watch::Sender<State>>,
    drain_timeout: Duration,
}

impl Shutdown {
    /// A worker that stays. Once it is told to leave, runs may go on for `drain_timeout`.
    pub fn new(drain_timeout: Duration) -> Self {
        let state = State { phase: Phase::Running, deadline: None };
        Self { state: Arc::new(watch::Sender::new(state)), drain_timeout }
    }

    /// Takes no more runs and leaves when those that run have ended, at the latest after the drain timeout.
    pub fn drain(&self) {
        self.drain_within(Some(self.drain_timeout));
    }

    /// Tells every run to stop, and leaves when they have.
    pub fn cancel(&self) {
        self.advance(Phase::Canceling);
    }

    /// Where the worker stands.
    pub fn phase(&self) -> Phase {
        self.state.borrow().phase
    }

    /// Drains within this bound; `None`: however long runs take. Of two bounds the earlier counts.
    pub(crate) fn drain_within(&self, bound: Option<Duration>) {
        let deadline = bound.and_then(|bound| Instant::now().checked_add(bound));
        self.state.send_modify(|state| {
            state.deadline = [state.deadline, deadline].into_iter().flatten().min();
            state.phase = state.phase.max(Phase::Draining);
        });
    }

    /// Waits until runs have had their time, which a later signal may shorten.
    pub(crate) async fn time_is_up(&self) {
        let mut state = self.state.subscribe();
        loop {
            let deadline = state.borrow_and_update().deadline;
            let passed = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = passed => return,
                // The sender lives as long as `self`.
                _ = state.changed() => {}
            }
        }
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
        self.state.send_if_modified(|state| {
            let moves = state.phase < to;
            state.phase = state.phase.max(to);
            moves
        });
    }

    /// Waits until the worker is at least this far.
    pub(crate) async fn reached(&self, at_least: Phase) {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| state.phase >= at_least).await;
    }

    /// Waits until the phase is past `seen`, and says which it is.
    pub(crate) async fn changed(&self, seen: Phase) -> Phase {
        let mut state = self.state.subscribe();
        state.wait_for(|state| state.phase > seen).await.map_or(Phase::Flushing, |state| state.phase)
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
        let shutdown = Shutdown::new(Duration::ZERO);
        shutdown.cancel();
        shutdown.drain();
        assert_eq!(shutdown.phase(), Phase::Canceling);
        assert_eq!(shutdown.changed(Phase::Running).await, Phase::Canceling);
        shutdown.reached(Phase::Draining).await;
    }

    #[tokio::test]
    async fn of_two_bounds_the_earlier_counts() {
        let shutdown = Shutdown::new(Duration::ZERO);
        shutdown.drain_within(None);
        shutdown.drain_within(Some(Duration::from_secs(3600)));
        let waiting = shutdown.time_is_up();
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            () = &mut waiting => panic!("an hour has not passed"),
            () = std::future::ready(()) => {}
        }
        shutdown.drain();
        waiting.await;
    }
}
