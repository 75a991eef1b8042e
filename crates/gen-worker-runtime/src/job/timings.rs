//! How long each stage of a run took.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use gen_worker_core::Event;
use serde_json::Map;

/// Runs that took less time have nothing to explain: `job.timings` would double what is sent for them.
const WORTH_TELLING: Duration = Duration::from_millis(10);

/// The stage is over.
const PAST: u8 = 0x80;

/// What a run spends its time on, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waiting for a thread.
    Queue,
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
    pub(crate) const ALL: [Self; 9] = [
        Self::Queue,
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
            Self::Queue => "queue",
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

/// The stages of one run so far.
pub(crate) struct Timings {
    started: Instant,
    /// Microseconds and one, by stage; zero: it was not reached.
    stages: [AtomicU64; Stage::ALL.len()],
    /// The stage it is in, and one, or that it was in last, and [`PAST`].
    current: AtomicU8,
}

impl Timings {
    pub(crate) fn start() -> Self {
        let current = AtomicU8::new(Stage::Queue as u8 + 1);
        Self { started: Instant::now(), stages: Default::default(), current }
    }

    /// A thread has taken it up.
    pub(crate) fn taken_up(&self) {
        self.current.store((Stage::Queue as u8 + 1) | PAST, Ordering::Relaxed);
        self.add(Stage::Queue, self.total());
    }

    /// Measures one stage; times of the same stage add up.
    pub(crate) async fn stage<F: Future>(&self, stage: Stage, work: F) -> F::Output {
        self.current.store(stage as u8 + 1, Ordering::Relaxed);
        let since = Instant::now();
        let result = work.await;
        self.current.store((stage as u8 + 1) | PAST, Ordering::Relaxed);
        self.add(stage, since.elapsed());
        result
    }

    fn add(&self, stage: Stage, took: Duration) {
        let slot = &self.stages[stage as usize];
        let before = slot.load(Ordering::Relaxed).max(1);
        slot.store(before + took.as_micros() as u64, Ordering::Relaxed);
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
        let current = self.current.load(Ordering::Relaxed);
        Stage::ALL.get(usize::from(current).checked_sub(1)?).copied()
    }

    /// The stage that the run is in, or that it was in last: where it failed, if it has. `None`: it was in none.
    pub(crate) fn last(&self) -> Option<Stage> {
        let current = self.current.load(Ordering::Relaxed) & !PAST;
        Stage::ALL.get(usize::from(current).checked_sub(1)?).copied()
    }

    /// The stages that were reached, and how long they took.
    pub(crate) fn reached(&self) -> impl Iterator<Item = (Stage, Duration)> {
        Stage::ALL.into_iter().filter_map(|stage| Some((stage, self.of(stage)?)))
    }

    /// How long these took together; zero: none of them was reached.
    pub(crate) fn took(&self, stages: &[Stage]) -> Duration {
        stages.iter().filter_map(|stage| self.of(*stage)).sum()
    }

    fn of(&self, stage: Stage) -> Option<Duration> {
        let micros = self.stages[stage as usize].load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn times_of_one_stage_add_up_and_short_runs_say_nothing() {
        let mut timings = Timings::start();
        assert_eq!(timings.current(), Some(Stage::Queue), "it waits for a thread");
        timings.taken_up();
        assert_eq!((timings.current(), timings.last()), (None, Some(Stage::Queue)));
        timings.stage(Stage::Run, async { assert_eq!(timings.current(), Some(Stage::Run)) }).await;
        assert_eq!((timings.current(), timings.last()), (None, Some(Stage::Run)));
        timings.stages[Stage::Run as usize] = AtomicU64::new(3001);
        timings.stage(Stage::Run, std::future::ready(())).await;
        let took = |stages: &[Stage]| timings.took(stages).as_millis();
        assert_eq!((took(&[Stage::Load, Stage::Run]), took(&[Stage::Load])), (3, 0));
        assert!(timings.event().is_none());
        timings.started -= WORTH_TELLING;
        let event = timings.event().expect("it took long enough");
        let payload: serde_json::Value = serde_json::from_slice(&event.payload_json).unwrap();
        assert!(payload["run_ms"].as_f64() >= Some(3.0) && payload["total_ms"].as_f64() >= Some(10.0));
        assert!(payload.get("load_ms").is_none());
    }
}
