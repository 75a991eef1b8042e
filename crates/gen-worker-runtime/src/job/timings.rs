//! How long each stage of a run took.

use std::{
    fmt,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use gen_worker_core::Event;
use serde_json::Map;

/// Runs that took less time have nothing to explain: `job.timings` would double what is sent for them.
const WORTH_TELLING: Duration = Duration::from_millis(10);

/// What a run spends its time on, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Fetching the files that the payload names.
    Inputs,
    /// Waiting for the worker's set-ups.
    SetUp,
    /// Making models present on disk.
    Model,
    /// Bringing models into memory.
    Load,
    /// Waiting for a GPU.
    GpuWait,
    /// The function itself.
    Run,
    /// Storing its output.
    Store,
    /// Storing what it attached.
    Attached,
}

impl Stage {
    pub(crate) const ALL: [Self; 8] = [
        Self::Inputs,
        Self::SetUp,
        Self::Model,
        Self::Load,
        Self::GpuWait,
        Self::Run,
        Self::Store,
        Self::Attached,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::SetUp => "setup",
            Self::Model => "model",
            Self::Load => "load",
            Self::GpuWait => "gpu_wait",
            Self::Run => "run",
            Self::Store => "store",
            Self::Attached => "attached",
        }
    }
}

/// The stages of one run so far, shown as `model=1 run=20 …` in milliseconds.
pub(crate) struct Timings {
    started: Instant,
    /// Microseconds and one, by stage; zero: it was not reached.
    stages: [AtomicU64; Stage::ALL.len()],
    /// The stage it is in, and one; zero: it is in none.
    current: AtomicU8,
}

impl Timings {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), stages: Default::default(), current: AtomicU8::new(0) }
    }

    /// Measures one stage; times of the same stage add up.
    pub(crate) async fn stage<F: Future>(&self, stage: Stage, work: F) -> F::Output {
        self.current.store(stage as u8 + 1, Ordering::Relaxed);
        let since = Instant::now();
        let result = work.await;
        self.current.store(0, Ordering::Relaxed);
        let micros = since.elapsed().as_micros() as u64;
        let slot = &self.stages[stage as usize];
        let before = slot.load(Ordering::Relaxed).max(1);
        slot.store(before + micros, Ordering::Relaxed);
        result
    }

    pub(crate) fn total(&self) -> Duration {
        self.started.elapsed()
    }

    /// `job.timings`: milliseconds by stage, and in all; `None`: the run was too short for them to matter.
    pub(crate) fn event(&self) -> Option<Event> {
        let total = self.total();
        if total < WORTH_TELLING {
            return None;
        }
        let milliseconds = |took: Duration| serde_json::Value::from(took.as_micros() as f64 / 1000.0);
        let stages = self.reached().map(|(stage, took)| (format!("{}_ms", stage.name()), milliseconds(took)));
        let mut payload: Map<_, _> = stages.collect();
        payload.insert("total_ms".to_owned(), milliseconds(total));
        Some(Event::custom("job.timings", payload))
    }

    /// The stage that the run is in; `None`: it is between two.
    pub(crate) fn current(&self) -> Option<Stage> {
        let number = usize::from(self.current.load(Ordering::Relaxed));
        Stage::ALL.get(number.checked_sub(1)?).copied()
    }

    /// The stages that were reached, and how long they took.
    pub(crate) fn reached(&self) -> impl Iterator<Item = (Stage, Duration)> {
        Stage::ALL.into_iter().filter_map(|stage| {
            let micros = self.stages[stage as usize].load(Ordering::Relaxed).checked_sub(1)?;
            Some((stage, Duration::from_micros(micros)))
        })
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (stage, took)) in self.reached().enumerate() {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{}={}", stage.name(), took.as_millis())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn times_of_one_stage_add_up_and_short_runs_say_nothing() {
        let mut timings = Timings::start();
        timings.stage(Stage::Run, async { assert_eq!(timings.current(), Some(Stage::Run)) }).await;
        assert_eq!(timings.current(), None);
        timings.stages[Stage::Run as usize] = AtomicU64::new(3001);
        timings.stage(Stage::Run, std::future::ready(())).await;
        assert_eq!(timings.to_string(), "run=3");
        assert!(timings.event().is_none());
        timings.started -= WORTH_TELLING;
        let event = timings.event().expect("it took long enough");
        let payload: serde_json::Value = serde_json::from_slice(&event.payload_json).unwrap();
        assert!(payload["run_ms"].as_f64() >= Some(3.0) && payload["total_ms"].as_f64() >= Some(10.0));
        assert!(payload.get("load_ms").is_none());
    }
}
