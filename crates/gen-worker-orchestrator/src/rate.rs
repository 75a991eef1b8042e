//! How often each caller may ask: a steady rate, and a burst on top of it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::auth::Caller;

/// How long a caller may have been silent for its silence to count: so much of its rate may come at once.
const BURST: Duration = Duration::from_secs(10);

/// The limit, and how far each caller has used it up. There are as many callers as there are tokens.
#[derive(Debug)]
pub(crate) struct RateLimit {
    /// Time between two requests at the steady rate; zero: there is no limit.
    every: Duration,
    /// When each caller will have nothing left over from its last requests.
    used_up_to: Mutex<HashMap<Caller, Instant>>,
}

impl RateLimit {
    /// So many requests a second; zero: there is no limit.
    pub(crate) fn new(per_second: u32) -> Self {
        let every = Duration::from_secs(1).checked_div(per_second).unwrap_or_default();
        Self { every, used_up_to: Mutex::default() }
    }

    /// Counts a request of this caller.
    ///
    /// # Errors
    /// It asks too often; after this time it may ask again.
    pub(crate) fn count(&self, caller: &Caller, now: Instant) -> Result<(), Duration> {
        let mut used_up_to = self.used_up_to.lock().unwrap_or_else(PoisonError::into_inner);
        let next = advance(used_up_to.get(caller).copied(), self.every, now)?;
        used_up_to.insert(caller.clone(), next);
        Ok(())
    }
}

/// One more request: when a caller that was busy up to a time will have been busy up to; or how long it must wait.
fn advance(used_up_to: Option<Instant>, every: Duration, now: Instant) -> Result<Instant, Duration> {
    let next = used_up_to.map_or(now, |at| at.max(now)) + every;
    let ahead = next.saturating_duration_since(now);
    if ahead > BURST { Err(ahead - BURST) } else { Ok(next) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_taken_and_then_the_steady_rate() {
        let (limit, start) = (RateLimit::new(2), Instant::now());
        let ask = |caller: &Caller, ms| limit.count(caller, start + Duration::from_millis(ms));
        let (one, other) = (Caller::Tenant("a".into()), Caller::Operator);
        for _ in 0..20 {
            assert_eq!(ask(&one, 0), Ok(()));
        }
        assert_eq!(ask(&one, 0), Err(Duration::from_millis(500)));
        assert_eq!(ask(&one, 400), Err(Duration::from_millis(100)));
        assert_eq!(ask(&other, 400), Ok(()));
        assert_eq!(ask(&one, 500), Ok(()));
        assert!(ask(&one, 500).is_err());
    }

    #[test]
    fn zero_is_no_limit() {
        let (limit, now) = (RateLimit::new(0), Instant::now());
        for _ in 0..100_000 {
            assert_eq!(limit.count(&Caller::Operator, now), Ok(()));
        }
    }
}
