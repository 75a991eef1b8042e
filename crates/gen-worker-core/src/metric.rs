//! Numbers about a worker, for those who watch it: counting one is an atomic addition, and reading them disturbs nobody.
//!
//! What is counted is a [`Metric`], a constant. Whoever counts keeps a [`Counter`] or a [`Histogram`] for each of its labels,
//! made at the start; [`Readings`] are what they hold at one moment.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How a metric's numbers are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows, from zero at the start of the process.
    Counter,
    /// It is what it is at this moment.
    Gauge,
    /// How often something took how long, in seconds.
    Histogram,
}

/// One thing that is counted or measured: a row of a crate's table.
#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name, by Prometheus's conventions: the unit at its end, behind it `_total` for a counter.
    pub name: &'static str,
    /// How it is read.
    pub kind: MetricKind,
    /// What is counted: `seconds`, `bytes`, or the things.
    pub unit: &'static str,
    /// What its numbers are told apart by. The values of each are few, and known when a worker is built.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

impl Metric {
    /// A count that only grows.
    pub const fn counter(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: MetricKind::Counter, unit, labels, help }
    }

    /// A number of this moment.
    pub const fn gauge(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Self { name, kind: MetricKind::Gauge, unit, labels, help }
    }

    /// How long something took.
    pub const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Self {
        Self { name, kind: MetricKind::Histogram, unit: "seconds", labels, help }
    }
}

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a histogram's buckets in milliseconds: from a short function to a long training run.
pub const BOUNDS_MS: [u64; 13] =
    [1, 5, 10, 50, 100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000];

/// A bucket for each bound, and one for what is beyond the last.
const BUCKETS: usize = BOUNDS_MS.len() + 1;

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    micros: AtomicU64,
}

impl Histogram {
    /// It took so long.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MS.partition_point(|bound| bound * 1000 < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What it holds at this moment.
    pub fn read(&self) -> Distribution {
        let mut count = 0;
        let up_to = array::from_fn(|at| {
            count += self.buckets[at].load(Ordering::Relaxed);
            count
        });
        Distribution { up_to, sum: Duration::from_micros(self.micros.load(Ordering::Relaxed)) }
    }
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// How many took at most as long as each of [`BOUNDS_MS`]; behind them, how many there were.
    pub up_to: [u64; BUCKETS],
    /// How long they took together.
    pub sum: Duration,
}

impl Distribution {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.up_to[BUCKETS - 1]
    }
}

/// One number, or one distribution.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number as f64)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as f64)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self::Number(duration.as_secs_f64())
    }
}

impl From<&Counter> for Value {
    fn from(counter: &Counter) -> Self {
        counter.get().into()
    }
}

impl From<&Histogram> for Value {
    fn from(histogram: &Histogram) -> Self {
        Self::Distribution(histogram.read())
    }
}

/// The value of a metric for one value of each of its labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// As many as the metric has labels, in their order.
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

/// What all counters hold at one moment, by metric.
#[derive(Debug, Default)]
pub struct Readings(Vec<(&'static Metric, Vec<Sample>)>);

impl Readings {
    /// Takes the value of a metric without labels.
    pub fn add(&mut self, metric: &'static Metric, value: impl Into<Value>) {
        self.add_by(metric, [], value);
    }

    /// Takes the value of a metric for these values of its labels.
    pub fn add_by<const N: usize>(
        &mut self,
        metric: &'static Metric,
        labels: [&str; N],
        value: impl Into<Value>,
    ) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let sample = Sample { labels: labels.map(str::to_owned).into(), value: value.into() };
        match self.0.iter_mut().find(|(known, _)| known.name == metric.name) {
            Some((_, samples)) => samples.push(sample),
            None => self.0.push((metric, vec![sample])),
        }
    }

    /// Each metric that was read with its samples, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Metric, &[Sample])> {
        self.0.iter().map(|(metric, samples)| (*metric, samples.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket_and_what_is_beyond_all_is_counted() {
        let histogram = Histogram::default();
        for millis in [0, 1, 2, 1_800_000, 1_800_001] {
            histogram.observe(Duration::from_millis(millis));
        }
        let read = histogram.read();
        assert_eq!((read.up_to[0], read.up_to[1], read.up_to[12], read.count()), (2, 3, 4, 5));
        assert_eq!(read.sum, Duration::from_millis(3_600_004));
    }

    #[test]
    fn samples_of_one_metric_stand_together() {
        const A: Metric = Metric::counter("a_total", "things", &["of"], "Things.");
        const B: Metric = Metric::gauge("b", "things", &[], "Things.");
        let mut readings = Readings::default();
        readings.add_by(&A, ["x"], 1_u64);
        readings.add(&B, 2_u64);
        readings.add_by(&A, ["y"], 3_u64);
        let shown: Vec<_> = readings.iter().map(|(metric, samples)| (metric.name, samples.len())).collect();
        assert_eq!(shown, [("a_total", 2), ("b", 1)]);
    }
}
