//! Keeps the worker's token fresh beside the stream, so that neither a file nor the key server delays a heartbeat.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime},
};

use gen_worker_core::{Secret, ports::CredentialSource};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tracing::{info, warn};

/// How often the token's expiry is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How long before its expiry a token is renewed.
const AHEAD: Duration = Duration::from_secs(60);

/// Takes the tokens that the scheduler sends, and renews one that is about to expire.
#[derive(Clone)]
pub(crate) struct Keeper {
    source: Arc<dyn CredentialSource>,
    /// The last token sent; one that comes before the last was taken takes its place.
    sent: watch::Sender<Option<Secret<String>>>,
}

impl Keeper {
    pub(crate) fn new(source: Arc<dyn CredentialSource>) -> Self {
        Self { source, sent: watch::Sender::new(None) }
    }

    /// Hands over a token from the scheduler; it is checked and taken by [`keep`](Self::keep).
    pub(crate) fn refresh(&self, token: Secret<String>) {
        self.sent.send_replace(Some(token));
    }

    /// Keeps the token fresh for as long as it is polled.
    pub(crate) async fn keep(&self) -> Infallible {
        let mut sent = self.sent.subscribe();
        let mut look = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_usable = true;
        loop {
            tokio::select! {
                // The sender lives as long as `self`.
                _ = sent.changed() => {
                    let token = sent.borrow_and_update().clone();
                    self.take(token).await;
                }
                _ = look.tick() => self.renew_in_time().await,
            }
            let usable = self.source.usable(SystemTime::now());
            match (was_usable, usable) {
                (true, false) => warn!("the worker's token has expired: no runs are taken"),
                (false, true) => info!("the worker has a token again: runs are taken"),
                _ => {}
            }
            was_usable = usable;
        }
    }

    async fn take(&self, token: Option<Secret<String>>) {
        let Some(token) = token else { return };
        match self.source.refresh(token).await {
            Ok(()) => info!("the scheduler sent a new token: it is used from the next dial on"),
            Err(refused) => warn!(error = refused.chain(), "the scheduler sent a token that is refused"),
        }
    }

    async fn renew_in_time(&self) {
        if self.source.usable(SystemTime::now() + AHEAD) {
            return;
        }
        if let Err(refused) = self.source.renew().await {
            warn!(error = refused.chain(), "the worker's token cannot be renewed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use async_trait::async_trait;
    use gen_worker_core::{FailureKind, JobFailure};
    use tokio::time::timeout;

    use super::*;

    /// Holds a token that expires at some time, and notes what is asked of it.
    struct Scripted {
        expires_at: SystemTime,
        asked: Mutex<Vec<String>>,
    }

    impl Scripted {
        fn expiring_in(seconds: u64) -> Arc<Self> {
            let expires_at = SystemTime::now() + Duration::from_secs(seconds);
            Arc::new(Self { expires_at, asked: Mutex::default() })
        }

        fn note(&self, what: &str) {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(what.to_owned());
        }

        fn asked(&self) -> Vec<String> {
            self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
        }
    }

    #[async_trait]
    impl CredentialSource for Scripted {
        fn bearer(&self) -> Option<Secret<String>> {
            None
        }

        fn usable(&self, at: SystemTime) -> bool {
            at < self.expires_at
        }

        async fn renew(&self) -> Result<(), JobFailure> {
            self.note("renew");
            Err(JobFailure::new(FailureKind::Auth, "no other token"))
        }

        async fn refresh(&self, token: Secret<String>) -> Result<(), JobFailure> {
            self.note(token.expose());
            Ok(())
        }
    }

    async fn keep_for(keeper: &Keeper, seconds: u64) {
        assert!(timeout(Duration::from_secs(seconds), keeper.keep()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_renewed_before_it_expires_and_again_until_that_helps() {
        let (soon, late) = (Scripted::expiring_in(30), Scripted::expiring_in(3600));
        keep_for(&Keeper::new(soon.clone()), 25).await;
        keep_for(&Keeper::new(late.clone()), 25).await;
        assert_eq!(soon.asked(), ["renew", "renew"]);
        assert!(late.asked().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_of_the_tokens_sent_is_taken() {
        let source = Scripted::expiring_in(3600);
        let keeper = Keeper::new(source.clone());
        let send = async {
            tokio::task::yield_now().await;
            keeper.refresh("first".into());
            keeper.refresh("second".into());
        };
        tokio::join!(keep_for(&keeper, 1), send);
        assert_eq!(source.asked(), ["second"]);
    }
}
