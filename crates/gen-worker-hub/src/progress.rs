//! How far a download is: for those who wait for it, and as a bar or lines on stderr.

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gen_worker_core::{LocalModel, TraceContext};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::{sync::watch, time::Instant};
use tracing::info;

use crate::{error::SharedError, meters::Meters};

/// Over how long a rate is measured at least.
const RATE_WINDOW: Duration = Duration::from_secs(2);
/// How often a download without a bar says a line.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What those who wait for a model see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// How far the transfer is. `None`: no transfer was needed yet.
    pub(crate) transfer: Option<Transfer>,
    /// How it ended.
    pub(crate) outcome: Option<Result<LocalModel, SharedError>>,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    /// Bytes present.
    pub(crate) done: u64,
    /// Bytes expected; `None`: the source does not say.
    pub(crate) total: Option<u64>,
    /// Bytes a second; `None`: not measured yet.
    pub(crate) rate: Option<u64>,
    /// Where they come from.
    pub(crate) source: &'static str,
}

/// Tells of one download.
#[derive(Debug)]
pub(crate) struct Reporter {
    sender: watch::Sender<Progress>,
    meters: Arc<Meters>,
    bars: Option<MultiProgress>,
    name: String,
    /// Of whoever asked first.
    trace: Option<TraceContext>,
    bar: OnceLock<ProgressBar>,
    meter: Mutex<Meter>,
    said: Mutex<Option<Instant>>,
}

/// Rates, told without a clock.
#[derive(Debug, Default)]
struct Meter {
    transfer: Transfer,
    since: Option<(Instant, u64)>,
}

/// One file's share of a download's progress.
#[derive(Debug, Clone)]
pub(crate) struct FileMeter {
    reporter: Arc<Reporter>,
    own: Arc<AtomicU64>,
}

impl Reporter {
    pub(crate) fn new(
        sender: watch::Sender<Progress>,
        meters: Arc<Meters>,
        bars: Option<MultiProgress>,
        name: String,
        trace: Option<TraceContext>,
    ) -> Self {
        let (meter, said) = (Mutex::default(), Mutex::default());
        Self { sender, meters, bars, name, trace, bar: OnceLock::new(), meter, said }
    }

    /// A transfer begins, with this much there of this many bytes.
    pub(crate) fn begin(&self, done: u64, total: Option<u64>, source: &'static str) {
        self.change(|meter, _| {
            *meter = Meter { transfer: Transfer { done, total, rate: None, source }, since: None };
        });
    }

    pub(crate) fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// Whether something had to be moved.
    pub(crate) fn has_begun(&self) -> bool {
        self.sender.borrow().transfer.is_some()
    }

    /// How many bytes are present.
    pub(crate) fn done(&self) -> u64 {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).transfer.done
    }

    /// The share of a file that is not there yet.
    pub(crate) fn file(self: &Arc<Self>) -> FileMeter {
        FileMeter { reporter: Arc::clone(self), own: Arc::default() }
    }

    /// It ended so.
    pub(crate) fn end(&self, outcome: Result<LocalModel, SharedError>) {
        self.sender.send_modify(|progress| progress.outcome = Some(outcome));
        if let (Some(bars), Some(bar)) = (&self.bars, self.bar.get()) {
            bar.finish();
            bars.remove(bar);
        }
    }

    fn change(&self, change: impl FnOnce(&mut Meter, Instant)) {
        let now = Instant::now();
        let transfer = {
            let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut meter, now);
            meter.transfer
        };
        self.sender.send_modify(|progress| progress.transfer = Some(transfer));
        match &self.bars {
            Some(bars) => self.draw(bars, transfer),
            None => self.say(now, transfer),
        }
    }

    fn draw(&self, bars: &MultiProgress, transfer: Transfer) {
        let bar = self.bar.get_or_init(|| bar(bars, &self.name));
        bar.set_length(transfer.total.unwrap_or(transfer.done));
        bar.set_position(transfer.done);
    }

    fn say(&self, now: Instant, transfer: Transfer) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(*said.get_or_insert(now)) < LINE_INTERVAL {
            return;
        }
        *said = Some(now);
        let Transfer { done, total, rate, source } = transfer;
        info!(model = %self.name, source, bytes = done, total, rate, "downloading");
    }
}

impl Meter {
    fn add(&mut self, bytes: i128, now: Instant) {
        let done = &mut self.transfer.done;
        *done = u64::try_from(i128::from(*done) + bytes).unwrap_or_default();
        let (since, before) = *self.since.get_or_insert((now, *done));
        let elapsed = now.duration_since(since);
        if elapsed >= RATE_WINDOW {
            let rate = done.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            self.transfer.rate = Some(rate as u64);
            self.since = Some((now, *done));
        }
    }
}

impl Transfer {
    /// Seconds until the rest is there, at this rate; `None`: size or rate are not known.
    pub(crate) fn eta_seconds(&self) -> Option<u64> {
        let rate = self.rate.filter(|rate| *rate > 0)?;
        Some(self.total?.saturating_sub(self.done).div_ceil(rate))
    }
}

impl FileMeter {
    /// This many more bytes are there.
    pub(crate) fn add(&self, bytes: u64) {
        self.own.fetch_add(bytes, Ordering::Relaxed);
        self.reporter.meters.bytes.add(bytes);
        self.reporter.change(|meter, now| meter.add(i128::from(bytes), now));
    }

    /// This many bytes are there, whatever was said before.
    pub(crate) fn set(&self, bytes: u64) {
        let before = self.own.swap(bytes, Ordering::Relaxed);
        self.reporter.change(|meter, now| {
            meter.add(i128::from(bytes) - i128::from(before), now);
            // What was there is no measure of the rate.
            meter.since = Some((now, meter.transfer.done));
        });
    }
}

fn bar(bars: &MultiProgress, name: &str) -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).expect("the template is constant");
    bars.add(ProgressBar::new(0).with_style(style).with_message(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::default();
        meter.transfer.total = Some(10_000);
        let mut at = |seconds, bytes| {
            meter.add(bytes, start + Duration::from_secs(seconds));
            (meter.transfer.done, meter.transfer.rate, meter.transfer.eta_seconds())
        };
        assert_eq!(at(0, 1000), (1000, None, None));
        assert_eq!(at(1, 1000), (2000, None, None));
        assert_eq!(at(2, 1000), (3000, Some(1000), Some(7)));
        assert_eq!(at(4, 4000), (7000, Some(2000), Some(2)));
        assert_eq!(at(5, -7000), (0, Some(2000), Some(5)));
        assert_eq!(at(9, 0), (0, Some(0), None));
    }
}
