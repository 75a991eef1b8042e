//! How long each stage of a run took.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gen_worker_core::Event;
use serde_json::Map;

/// The stages of one run so far, shown as `model=1 run=20 …` in milliseconds. Clones share it.
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

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, took)) in self.stages().iter().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{name}={}", took.as_millis())?;
        }
        Ok(())
    }
}
