//! What is counted of models on their way to this machine.

use std::time::Duration;

use gen_worker_core::metric::{Counter, Histogram, Metric, Readings};

static BYTES: Metric = Metric::counter(
    "gen_worker_download_bytes_total",
    "bytes",
    &[],
    "Bytes of models that have arrived, those of downloads under way included.",
);
static SECONDS: Metric = Metric::histogram(
    "gen_worker_download_duration_seconds",
    &[],
    "How long it took to bring models that were not on disk, with the wait for a place.",
);
static FAILED: Metric =
    Metric::counter("gen_worker_downloads_failed_total", "models", &[], "Models that could not be brought.");
static HITS: Metric = Metric::counter(
    "gen_worker_model_cache_hits_total",
    "models",
    &[],
    "Models that were looked for and were on disk.",
);
static EVICTED: Metric = Metric::counter(
    "gen_worker_models_evicted_total",
    "models",
    &[],
    "Models that were removed from the disk to make room for others.",
);

static INPUT_BYTES: Metric = Metric::counter(
    "gen_worker_input_bytes_total",
    "bytes",
    &[],
    "Bytes of input files that have arrived; those of files that were kept are none of them.",
);
static INPUT_SECONDS: Metric = Metric::histogram(
    "gen_worker_input_duration_seconds",
    &[],
    "How long it took to bring each input file, also one that was kept.",
);
static INPUT_FAILED: Metric =
    Metric::counter("gen_worker_inputs_failed_total", "files", &[], "Input files that could not be brought.");
static INPUT_KEPT: Metric = Metric::counter(
    "gen_worker_input_cache_hits_total",
    "files",
    &[],
    "Input files that were taken from those kept of earlier runs.",
);

/// What the hub counts.
pub static METRICS: &[&Metric] =
    &[&BYTES, &SECONDS, &FAILED, &HITS, &EVICTED, &INPUT_BYTES, &INPUT_SECONDS, &INPUT_FAILED, &INPUT_KEPT];

/// How the look for a model ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Landed {
    /// Nothing had to be moved.
    Hit,
    /// It was moved.
    Downloaded,
    Failed,
}

/// The counters of a hub.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) bytes: Counter,
    seconds: Histogram,
    failed: Counter,
    hits: Counter,
    pub(crate) evicted: Counter,
    pub(crate) input_bytes: Counter,
    input_seconds: Histogram,
    inputs_failed: Counter,
    pub(crate) kept_inputs: Counter,
}

impl Meters {
    pub(crate) fn landed(&self, landed: Landed, took: Duration) {
        match landed {
            Landed::Hit => self.hits.one(),
            Landed::Downloaded => self.seconds.observe(took),
            Landed::Failed => self.failed.one(),
        }
    }

    /// An input file was brought, or not.
    pub(crate) fn input(&self, is_there: bool, took: Duration) {
        match is_there {
            true => self.input_seconds.observe(took),
            false => self.inputs_failed.one(),
        }
    }

    pub(crate) fn measure(&self, readings: &mut Readings) {
        readings.add(&BYTES, &self.bytes);
        readings.add(&SECONDS, &self.seconds);
        readings.add(&FAILED, &self.failed);
        readings.add(&HITS, &self.hits);
        readings.add(&EVICTED, &self.evicted);
        readings.add(&INPUT_BYTES, &self.input_bytes);
        readings.add(&INPUT_SECONDS, &self.input_seconds);
        readings.add(&INPUT_FAILED, &self.inputs_failed);
        readings.add(&INPUT_KEPT, &self.kept_inputs);
    }
}
