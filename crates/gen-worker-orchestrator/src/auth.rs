//! Tokens: made, carried and compared; and the two clocks they and the runs live by.

use std::time::{SystemTime, UNIX_EPOCH};

use gen_worker_core::{Algorithm, Digest, Secret};
use tokio::time::Instant;
use uuid::Uuid;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// For waiting.
    pub(crate) at: Instant,
    /// For showing: milliseconds since the Unix epoch.
    pub(crate) unix_ms: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { at: Instant::now(), unix_ms: since_epoch.map_or(0, |d| d.as_millis() as u64) }
    }
}

/// A text that nobody can guess: 244 random bits.
pub(crate) fn random_token() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// The token in an `Authorization: Bearer` value.
pub(crate) fn bearer(authorization: Option<&str>) -> Option<&str> {
    let (scheme, token) = authorization?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a caller who sent `given` may enter; everybody may where nothing is `wanted`.
pub(crate) fn admits(wanted: Option<&Secret<String>>, given: Option<&str>) -> bool {
    match (wanted, given) {
        (None, _) => true,
        (Some(wanted), Some(given)) => same(wanted.expose(), given),
        (Some(_), None) => false,
    }
}

/// Compares digests, so that the time it takes says nothing about the texts.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    digest(a) == digest(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bearer_enters() {
        let wanted = Secret::from("t");
        assert!(admits(Some(&wanted), bearer(Some("bearer t"))));
        for wrong in [None, Some("Bearer x"), Some("Basic t"), Some("t")] {
            assert!(!admits(Some(&wanted), bearer(wrong)), "{wrong:?}");
        }
        assert!(admits(None, None));
    }
}
