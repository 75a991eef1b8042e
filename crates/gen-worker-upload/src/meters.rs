//! What is counted of bytes on their way out.

use std::time::Instant;

use gen_worker_core::{
    JobFailure,
    metric::{Counter, Histogram, Metric, Readings},
};

static BYTES: Metric = Metric::counter(
    "gen_worker_upload_bytes_total",
    "bytes",
    &["to"],
    "Bytes that were stored at the file API (files), and where payloads said (outputs).",
);
static SECONDS: Metric = Metric::histogram(
    "gen_worker_upload_duration_seconds",
    &["to"],
    "How long it took to store what was stored, with the wait for a place.",
);
static FAILED: Metric = Metric::counter(
    "gen_worker_uploads_failed_total",
    "files",
    &["to"],
    "Files and outputs that could not be stored, those of runs that were told to stop included.",
);

/// What uploads count.
pub static METRICS: &[&Metric] = &[&BYTES, &SECONDS, &FAILED];

/// Where bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Files,
    Outputs,
}

impl To {
    const ALL: [Self; 2] = [Self::Files, Self::Outputs];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Outputs => "outputs",
        }
    }
}

/// The counters of all uploads, by where they go.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    bytes: [Counter; To::ALL.len()],
    seconds: [Histogram; To::ALL.len()],
    failed: [Counter; To::ALL.len()],
}

impl Meters {
    /// Sees one upload to its end; `size` is what it has stored.
    pub(crate) async fn count<T>(
        &self,
        to: To,
        upload: impl Future<Output = Result<T, JobFailure>>,
        size: impl Fn(&T) -> u64,
    ) -> Result<T, JobFailure> {
        let since = Instant::now();
        let stored = upload.await;
        match &stored {
            Ok(stored) => {
                self.bytes[to as usize].add(size(stored));
                self.seconds[to as usize].observe(since.elapsed());
            }
            Err(_) => self.failed[to as usize].one(),
        }
        stored
    }

    pub(crate) fn measure(&self, readings: &mut Readings) {
        for to in To::ALL {
            readings.add_by(&BYTES, [to.as_str()], &self.bytes[to as usize]);
            readings.add_by(&SECONDS, [to.as_str()], &self.seconds[to as usize]);
            readings.add_by(&FAILED, [to.as_str()], &self.failed[to as usize]);
        }
    }
}
