//! Telling a run to stop, and why.

use std::sync::Arc;

use tokio::sync::SetOnce;

/// Why a run was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// The caller or the scheduler asked for it.
    User,
    /// Its time is over.
    Deadline,
    /// The worker is leaving.
    Drain,
    /// A newer attempt of the same run took its place.
    Superseded,
}

impl CancelReason {
    /// The reason as a word: `user`, `deadline`, `drain`, `superseded`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Deadline => "deadline",
            Self::Drain => "drain",
            Self::Superseded => "superseded",
        }
    }
}

/// One run's stop signal. Clones share it; the first reason given stays.
#[derive(Debug, Clone, Default)]
pub struct Cancellation(Arc<SetOnce<CancelReason>>);

impl Cancellation {
    /// A signal that was not given.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal, and says whether this was the first time. Later calls change nothing.
    pub fn cancel(&self, reason: CancelReason) -> bool {
        self.0.set(reason).is_ok()
    }

    /// Why the signal was given; `None` while it was not.
    pub fn reason(&self) -> Option<CancelReason> {
        self.0.get().copied()
    }

    /// Waits until the signal is given.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn canceled(&self) -> CancelReason {
        *self.0.wait().await
    }
}
