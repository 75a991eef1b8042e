//! How long each stage of a run took.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gen_worker_core::Event;
use serde_json::Map;

/// The stages of one run so far. Clones share it.
#[derive(Clone)]
pub(crate) struct Timings {
    started: Instant,
    stages: Arc<Mutex<Vec<(&'static str, Duration)>>>,
}

impl Timings {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), stages: Arc::default() }
    }

    /// Measures one stage.
    pub(crate) async fn stage<F: Future>(&self, name: &'static str, work: F) -> F::Output {
        let since = Instant::now();
        let result = work.await;
        self.stages().push((name, since.elapsed()));
        result
    }

    pub(crate) fn total(&self) -> Duration {
        self.started.elapsed()
    }

    /// `decode=1 inputs=20 …`, in milliseconds, for the log.
    pub(crate) fn text(&self) -> String {
        let shown: Vec<String> =
            self.stages().iter().map(|(name, took)| format!("{name}={}", took.as_millis())).collect();
        shown.join(" ")
    }

    /// `job.timings`: milliseconds by stage, and in all.
    pub(crate) fn event(&self) -> Event {
        let milliseconds = |took: Duration| serde_json::Value::from(took.as_micros() as f64 / 1000.0);
        let mut payload: Map<_, _> =
            self.stages().iter().map(|(name, took)| (format!("{name}_ms"), milliseconds(*took))).collect();
        payload.insert("total_ms".to_owned(), milliseconds(self.total()));
        Event::custom("job.timings", payload)
    }

    fn stages(&self) -> MutexGuard<'_, Vec<(&'static str, Duration)>> {
        self.stages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
