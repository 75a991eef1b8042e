//! Which failures are worth another try, and when.

use std::{error::Error, future::Future, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use tracing::debug;

use crate::{client::HttpClient, error::NetError};

/// The first wait is at most this; it doubles with each failure. As the original worker's.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// No drawn wait is longer. As the original worker's.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// No `Retry-After` is honoured beyond this: a run waits for it.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

impl HttpClient {
    /// Repeats an operation whose failure `cause` is transient, [`NetConfig::attempts`](crate::NetConfig::attempts)
    /// times in all. Waits are drawn from zero to a bound that doubles, unless the server says how long.
    ///
    /// # Errors
    /// The last failure.
    pub async fn retry<T, E, F>(
        &self,
        operation: impl FnMut() -> F,
        cause: impl Fn(&E) -> Option<&NetError>,
    ) -> Result<T, E>
    where
        E: Error,
        F: Future<Output = Result<T, E>>,
    {
        let retries = self.config().attempts.saturating_sub(1);
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(MAX_DELAY)
            .with_max_times(retries as usize);
        operation
            .retry(delays)
            .sleep(tokio::time::sleep)
            .when(|error| cause(error).is_some_and(NetError::is_transient))
            .adjust(|error, bound| bound.map(|bound| delay(cause(error), bound, fastrand::f64())))
            .notify(|error, wait| debug!(%error, wait_ms = wait.as_millis() as u64, "trying again"))
            .await
    }
}

/// How long to wait: what the server asks for, else a share of the bound.
fn delay(cause: Option<&NetError>, bound: Duration, chance: f64) -> Duration {
    match cause {
        Some(NetError::Status { retry_after: Some(wait), .. }) => (*wait).min(MAX_RETRY_AFTER),
        _ => bound.mul_f64(chance),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn the_server_says_how_long_within_a_bound() {
        let asked = |seconds| {
            let error = NetError::Status {
                status: StatusCode::SERVICE_UNAVAILABLE,
                retry_after: Some(Duration::from_secs(seconds)),
            };
            delay(Some(&error), Duration::from_secs(4), 0.5).as_secs()
        };
        assert_eq!([asked(0), asked(7), asked(9999)], [0, 7, 60]);
    }

    #[test]
    fn a_wait_is_drawn_below_its_bound() {
        let drawn = delay(Some(&NetError::Timeout), Duration::from_secs(4), 0.25);
        assert_eq!(drawn, Duration::from_secs(1));
    }
}
