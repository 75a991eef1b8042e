//! A layer: so many runs of one tenant in so much time, and the others are refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use gen_worker::{
    WorkerError,
    layer::{Answer, BoxFuture, Handler, Invocation, Layer, LayerError, Service},
};

/// The layer. Clones of its service share what was counted.
pub(crate) struct PerTenant {
    windows: Arc<Windows>,
}

impl PerTenant {
    /// `runs` within `time` for each tenant; the runs of nobody count together.
    pub(crate) fn new(runs: u32, time: Duration) -> Self {
        Self { windows: Arc::new(Windows { runs, time, by_tenant: Mutex::default() }) }
    }
}

impl Layer<Handler> for PerTenant {
    type Service = Limited;

    fn layer(&self, inner: Handler) -> Limited {
        Limited { windows: self.windows.clone(), inner }
    }
}

/// A handler with the layer around it.
#[derive(Clone)]
pub(crate) struct Limited {
    windows: Arc<Windows>,
    inner: Handler,
}

impl Service<Invocation> for Limited {
    type Response = Answer;
    type Error = LayerError;
    type Future = BoxFuture<'static, Result<Answer, LayerError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LayerError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        match self.windows.enter(call.context().tenant_id(), Instant::now()) {
            Ok(()) => self.inner.call(call),
            Err(wait) => {
                let text = format!("too many runs of this tenant; again in {} s", wait.as_secs() + 1);
                Box::pin(async { Err(WorkerError::retryable(text).into()) })
            }
        }
    }
}

struct Windows {
    runs: u32,
    time: Duration,
    /// When each tenant's window began, and how many runs were in it. One that is over is forgotten with the next that begins.
    by_tenant: Mutex<HashMap<Option<String>, (Instant, u32)>>,
}

impl Windows {
    /// Counts a run, or says how long the tenant has to wait.
    fn enter(&self, tenant: Option<&str>, now: Instant) -> Result<(), Duration> {
        let mut windows = self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner);
        let tenant = tenant.map(str::to_owned);
        let is_over = |since: Instant| now.duration_since(since) >= self.time;
        match windows.get_mut(&tenant) {
            Some((since, runs)) if !is_over(*since) => {
                if *runs >= self.runs {
                    return Err(self.time - now.duration_since(*since));
                }
                *runs += 1;
            }
            _ => {
                windows.retain(|_, (since, _)| !is_over(*since));
                windows.insert(tenant, (now, 1));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tenant_has_its_share_and_a_new_one_in_time() {
        let (limit, start) = (PerTenant::new(2, Duration::from_secs(60)), Instant::now());
        let enter = |tenant, after| limit.windows.enter(tenant, start + Duration::from_secs(after));
        assert_eq!([enter(Some("a"), 0), enter(Some("a"), 1)], [Ok(()), Ok(())]);
        assert_eq!(enter(Some("a"), 20), Err(Duration::from_secs(40)));
        assert_eq!([enter(Some("b"), 20), enter(None, 20), enter(Some("a"), 60)], [Ok(()); 3]);
        assert_eq!(limit.windows.by_tenant.lock().unwrap().len(), 3);
        assert_eq!(enter(Some("b"), 300), Ok(()));
        assert_eq!(limit.windows.by_tenant.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}
