//! The published keys, fetched when they are needed and kept for a while.

use std::{sync::Arc, time::Duration};

use gen_worker_net::{HttpClient, Method, NetError, Trust};
use tokio::{sync::Mutex, time::Instant};
use tracing::debug;
use url::Url;

use crate::{error::AuthError, jwks::KeySet};

/// How long one fetch may take, as in the original worker (contract §2.6).
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest key set document; a thousand RSA keys fit.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;
/// Least time between a fetch and the next for an id that it did not bring, so that forged ids cannot make the worker ask
/// without end, nor any id while the publisher is away.
const MISS_INTERVAL: Duration = Duration::from_secs(10);

/// The keys published at one URL.
#[derive(Debug)]
pub(crate) struct KeyCache {
    client: HttpClient,
    url: Url,
    ttl: Duration,
    /// Held while fetching, which is bounded, so that callers who need the keys at once share one fetch.
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    fetched: Option<(Arc<KeySet>, Instant)>,
    /// When the last fetch failed; `None`: it did not.
    failed_at: Option<Instant>,
}

impl KeyCache {
    /// An empty cache; `ttl` zero keeps keys for ever.
    pub(crate) fn new(client: HttpClient, url: Url, ttl: Duration) -> Self {
        Self { client, url, ttl, kept: Mutex::default() }
    }

    /// The published keys, fetched if they are old, or if this id is not among them and the last fetch is a while ago.
    pub(crate) async fn keys_for(&self, key_id: &str) -> Result<Arc<KeySet>, AuthError> {
        let (mut kept, now) = (self.kept.lock().await, Instant::now());
        if let Some(keys) = kept.usable(key_id, self.ttl, now) {
            return Ok(keys);
        }
        if kept.rests(now) {
            return Err(AuthError::KeySetAwaited);
        }
        // A fetch that is given up has failed too.
        kept.failed_at = Some(now);
        let keys = self.fetch().await.map_err(|source| AuthError::NoKeySet { source })?;
        let keys = Arc::new(keys);
        *kept = Kept { fetched: Some((keys.clone(), Instant::now())), failed_at: None };
        debug!("published keys fetched");
        Ok(keys)
    }

    async fn fetch(&self) -> Result<KeySet, NetError> {
        let request =
            self.client.request(Method::GET, self.url.clone(), Trust::Operator).timeout(FETCH_TIMEOUT);
        request.send().await?.into_success()?.json(MAX_DOCUMENT_BYTES).await
    }
}

impl Kept {
    /// The keys kept, if they may be used to look for this id.
    fn usable(&self, key_id: &str, ttl: Duration, now: Instant) -> Option<Arc<KeySet>> {
        let (keys, fetched_at) = self.fetched.as_ref()?;
        let lifetime = match keys.get(key_id) {
            Some(_) if ttl.is_zero() => Duration::MAX,
            Some(_) => ttl,
            None => MISS_INTERVAL,
        };
        (now.saturating_duration_since(*fetched_at) < lifetime).then(|| keys.clone())
    }

    /// Whether the publisher is left alone after a fetch that failed.
    fn rests(&self, now: Instant) -> bool {
        self.failed_at.is_some_and(|at| now.saturating_duration_since(at) < MISS_INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ONE, key_set};

    const SECOND: Duration = Duration::from_secs(1);

    fn published() -> Arc<KeySet> {
        Arc::new(serde_json::from_value(key_set([&*ONE])).unwrap())
    }

    fn uses(key_id: &str, ttl: Duration, age: Duration) -> bool {
        let start = Instant::now();
        let kept = Kept { fetched: Some((published(), start)), failed_at: None };
        kept.usable(key_id, ttl, start + age).is_some()
    }

    #[test]
    fn known_keys_live_as_long_as_they_may() {
        assert!(uses("one", 300 * SECOND, 299 * SECOND));
        assert!(!uses("one", 300 * SECOND, 300 * SECOND));
        assert!(uses("one", Duration::ZERO, 1_000_000 * SECOND));
    }

    #[test]
    fn an_unknown_id_asks_again_after_a_while() {
        assert!(uses("new", 300 * SECOND, 9 * SECOND));
        assert!(!uses("new", 300 * SECOND, 10 * SECOND));
        assert!(!uses("new", Duration::ZERO, 10 * SECOND));
    }

    #[test]
    fn a_failed_fetch_neither_drops_keys_nor_makes_them_younger() {
        let start = Instant::now();
        let kept = Kept { fetched: Some((published(), start)), failed_at: Some(start + 20 * SECOND) };
        assert!(kept.usable("one", 30 * SECOND, start + 29 * SECOND).is_some());
        assert!(kept.usable("one", 30 * SECOND, start + 30 * SECOND).is_none());
        assert!(kept.usable("new", 30 * SECOND, start + 29 * SECOND).is_none());
    }

    #[test]
    fn after_a_failed_fetch_the_publisher_is_left_alone_for_a_while() {
        let start = Instant::now();
        let kept = Kept { fetched: None, failed_at: Some(start) };
        assert!(kept.rests(start + 9 * SECOND) && !kept.rests(start + 10 * SECOND));
        assert!(!Kept::default().rests(start));
    }

    #[test]
    fn an_empty_cache_has_nothing_to_use() {
        assert!(Kept::default().usable("one", SECOND, Instant::now()).is_none());
    }
}
