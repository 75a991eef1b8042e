//! The worker as it is watched: its condition and its numbers, read where it works without disturbing it.

use std::{
    convert::Infallible,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gen_worker_core::{
    metric::Readings,
    ports::{Condition, Measured, ModelDevice, ModelManager, Observer, Vitals},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;

use crate::{
    admission::{Admission, Held},
    heartbeat::Reporter,
    meters::{self, Meters},
    outbox::{Census, Losses, Outbox},
    prefetch::Prefetch,
    shutdown::{Phase, Shutdown},
};

/// How often the control loop shows that it turns: often enough for a watchdog of a few seconds.
const PULSE: Duration = Duration::from_secs(1);

/// What is watched, and its pulse.
pub(crate) struct Watched {
    pub meters: Arc<Meters>,
    pub reporter: Arc<Reporter>,
    pub admission: Admission,
    pub outbox: Arc<Outbox>,
    pub prefetch: Prefetch,
    pub shutdown: Shutdown,
    pub gpu_runs: Arc<AtomicUsize>,
    /// How long a result is kept that nobody acknowledges.
    pub result_retention: Duration,
    pub tasks: TaskTracker,
    pub pulse: Pulse,
}

/// Lets whoever was given watch the worker; nothing is done where nobody was.
pub(crate) async fn watch(observer: Option<Arc<dyn Observer>>, watched: Arc<Watched>) -> Infallible {
    if let Some(observer) = observer {
        tokio::select! {
            never = watched.pulse.beat() => match never {},
            // It has nobody to tell.
            () = observer.watch(watched.clone()) => {}
        }
    }
    std::future::pending().await
}

/// When the control loop last turned.
#[derive(Default)]
pub(crate) struct Pulse {
    first: OnceLock<Instant>,
    /// After the first beat, in milliseconds.
    last_ms: AtomicU64,
}

impl Pulse {
    async fn beat(&self) -> Infallible {
        let mut beat = interval(PULSE);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            let first = self.first.get_or_init(Instant::now);
            self.last_ms.store(first.elapsed().as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// How long ago; zero before the first.
    fn ago(&self) -> Duration {
        let since = self.first.get().map_or(Duration::ZERO, Instant::elapsed);
        since.saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

impl Vitals for Watched {
    fn condition(&self) -> Condition {
        let (available, loading) = self.reporter.functions();
        Condition {
            turned_ago: self.pulse.ago(),
            was_connected: self.meters.was_connected(),
            is_connected: self.meters.is_connected(),
            is_leaving: self.shutdown.phase() >= Phase::Draining,
            closed: self.admission.closed(),
            available,
            loading,
        }
    }
}

impl Measured for Watched {
    fn measure(&self, readings: &mut Readings) {
        self.meters.measure(readings);
        readings.add_by(&meters::STAGE_SECONDS, ["deliver"], self.outbox.delivery());
        let Held { in_flight, permits, zombies } = self.admission.held();
        readings.add(&meters::IN_FLIGHT, in_flight);
        readings.add(&meters::PERMITS, permits);
        readings.add(&meters::ZOMBIES, zombies);
        readings.add(&meters::GPU_RUNS, self.gpu_runs());
        let (available, loading) = self.reporter.functions();
        readings.add_by(&meters::FUNCTIONS, ["available"], available);
        readings.add_by(&meters::FUNCTIONS, ["loading"], loading.len());
        self.measure_outbox(readings);
        self.measure_machine(readings);
    }
}

impl Watched {
    /// How many runs hold a GPU.
    pub(crate) fn gpu_runs(&self) -> usize {
        self.gpu_runs.load(Ordering::Relaxed)
    }

    fn measure_outbox(&self, readings: &mut Readings) {
        let Census { results, result_bytes, unwritten, oldest, events, lost, .. } = self.outbox.census();
        let Losses { events: dropped, results: shed } = lost;
        readings.add(&meters::OUTBOX_RESULTS, results);
        readings.add(&meters::OUTBOX_UNWRITTEN, unwritten);
        readings.add(&meters::OUTBOX_BYTES, result_bytes);
        readings.add(&meters::OUTBOX_AGE, oldest.unwrap_or_default());
        readings.add(&meters::OUTBOX_EVENTS, events);
        readings.add(&meters::EVENTS_DROPPED, dropped);
        readings.add(&meters::RESULTS_SHED, shed);
    }

    fn measure_machine(&self, readings: &mut Readings) {
        readings.add_by(&meters::MODELS, ["disk"], self.reporter.on_disk().len());
        readings.add_by(&meters::MODELS, ["memory"], self.reporter.resident().len());
        if let Some(manager) = self.reporter.model_manager() {
            measure_models(manager, readings);
        }
        let gpu = &self.reporter.host().gpu;
        readings.add(&meters::GPUS, u64::from(gpu.count));
        for (number, device) in gpu.devices.iter().enumerate() {
            let number = number.to_string();
            readings.add_by(&meters::GPU_MEMORY, [&number], device.memory_bytes);
            readings.add_by(&meters::GPU_MEMORY_USED, [&number], device.memory_used_bytes);
            readings.add_by(&meters::GPU_UTILIZATION, [&number], f64::from(device.busy_percent) / 100.0);
        }
    }
}

fn measure_models(manager: &dyn ModelManager, readings: &mut Readings) {
    let stats = manager.stats();
    readings.add(&meters::MODEL_LEASES, stats.leased);
    for (number, memory) in manager.memory().into_iter().enumerate() {
        let device = match manager.device() {
            ModelDevice::Gpu => number.to_string(),
            _ => "cpu".to_owned(),
        };
        readings.add_by(&meters::MODEL_MEMORY, [&device], memory.used_bytes);
        readings.add_by(&meters::MODEL_BUDGET, [&device], memory.budget_bytes);
    }
    readings.add(&meters::MODEL_LOADS, stats.loads);
    readings.add(&meters::MODEL_HITS, stats.hits);
    readings.add(&meters::MODEL_MISSES, stats.misses);
    readings.add(&meters::MODEL_EVICTIONS, stats.evictions);
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{
        JobFailure, LocalModel, ModelRef,
        ports::{LeaseHolder, ModelLease, ModelMemory, ModelStats},
    };

    use super::*;

    /// Two cards.
    struct Cards;

    #[async_trait::async_trait]
    impl ModelManager for Cards {
        async fn load(&self, _: &LocalModel) -> Result<(), JobFailure> {
            Ok(())
        }

        async fn lease(&self, _: &LocalModel, _: &LeaseHolder) -> Result<ModelLease, JobFailure> {
            Ok(Arc::new(()))
        }

        async fn unload(&self, _: &ModelRef) -> Result<(), JobFailure> {
            Ok(())
        }

        fn resident(&self) -> Vec<String> {
            Vec::new()
        }

        fn stats(&self) -> ModelStats {
            ModelStats { used_bytes: 7, budget_bytes: 100, ..ModelStats::default() }
        }

        fn memory(&self) -> Vec<ModelMemory> {
            [(3, 80), (4, 20)]
                .map(|(used_bytes, budget_bytes)| ModelMemory { used_bytes, budget_bytes })
                .into()
        }

        fn device(&self) -> ModelDevice {
            ModelDevice::Gpu
        }

        fn engine_version(&self) -> Option<String> {
            None
        }
    }

    #[test]
    fn each_card_has_a_series_of_its_own() {
        let mut readings = Readings::default();
        measure_models(&Cards, &mut readings);
        let of = |metric: &'static str| {
            let (_, samples) = readings.iter().find(|(known, _)| known.name == metric).unwrap();
            samples.iter().map(|sample| (sample.labels[0].clone(), sample.value.clone())).collect::<Vec<_>>()
        };
        let told =
            |first: u64, second: u64| [("0".to_owned(), first.into()), ("1".to_owned(), second.into())];
        assert_eq!(of(meters::MODEL_MEMORY.name), told(3, 4));
        assert_eq!(of(meters::MODEL_BUDGET.name), told(80, 20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_that_stops_is_noticed() {
        let pulse = Pulse::default();
        assert_eq!(pulse.ago(), Duration::ZERO);
        tokio::select! {
            never = pulse.beat() => match never {},
            () = tokio::time::sleep(PULSE * 3) => {}
        }
        let first = *pulse.first.get().expect("it has beaten");
        let stopped = Pulse { first: OnceLock::from(first - Duration::from_secs(9)), ..Pulse::default() };
        assert!(stopped.ago() >= Duration::from_secs(9));
        assert!(pulse.ago() < Duration::from_secs(9));
    }
}
