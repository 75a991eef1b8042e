//! The one line of the log that a run ends with.

use std::time::{Duration, Instant};

use tracing::{Level, Span, debug, enabled, info, warn};

use super::{
    Ration,
    timings::{Stage, Timings},
};
use crate::meters::Outcome;

/// What the line says, but for how long its delivery took.
pub(crate) struct Line {
    /// Which run.
    span: Span,
    outcome: Outcome,
    elapsed: Duration,
    queue: Duration,
    fetch: Duration,
    lease: Duration,
    run: Duration,
    store: Duration,
    /// Where it failed.
    stage: Option<&'static str>,
    /// Of the output; 0 where there is none.
    bytes: usize,
    error: Option<String>,
    /// Lines before this one that were not written.
    left_out: Option<u64>,
    /// It is for those who look closely.
    is_detail: bool,
    ready: Instant,
}

impl Line {
    /// The line of a run that ends now. Of runs that succeed faster than anyone reads, some have one; `None`: not this one.
    pub(super) fn of(
        span: Span,
        outcome: Outcome,
        timings: &Timings,
        output: Result<usize, String>,
        ration: &Ration,
    ) -> Option<Box<Self>> {
        let left_out = if outcome == Outcome::Success { ration.take() } else { Some(None) };
        let is_detail = left_out.is_none();
        if is_detail && !enabled!(Level::DEBUG) {
            return None;
        }
        let [queue, fetch, lease, run, store] = [
            &[Stage::Queue, Stage::SetUp, Stage::GpuWait][..],
            &[Stage::Inputs, Stage::Model],
            &[Stage::Load],
            &[Stage::Run],
            &[Stage::Store, Stage::Attached],
        ]
        .map(|stages| timings.took(stages));
        let (bytes, stage, error) = match output {
            Ok(bytes) => (bytes, None, None),
            Err(error) => (0, timings.last().map(Stage::name), Some(error)),
        };
        let (elapsed, left_out, ready) = (timings.total(), left_out.flatten(), Instant::now());
        Some(Box::new(Self {
            span,
            outcome,
            elapsed,
            queue,
            fetch,
            lease,
            run,
            store,
            stage,
            bytes,
            error,
            left_out,
            is_detail,
            ready,
        }))
    }

    /// Writes it. `delivered`: when the scheduler had the result; `None`: that is not known.
    pub(crate) fn write(self: Box<Self>, delivered: Option<Instant>) {
        let millis = |took: Duration| took.as_millis() as u64;
        let deliver = delivered.map(|at| at.saturating_duration_since(self.ready));
        macro_rules! write {
            ($level:ident, $said:literal) => {
                $level!(
                    outcome = self.outcome.as_str(),
                    elapsed_ms = millis(self.elapsed),
                    queue_ms = millis(self.queue),
                    fetch_ms = millis(self.fetch),
                    lease_ms = millis(self.lease),
                    run_ms = millis(self.run),
                    store_ms = millis(self.store),
                    deliver_ms = deliver.map(millis),
                    bytes = self.bytes,
                    stage = self.stage,
                    left_out = self.left_out,
                    error = self.error.as_deref(),
                    $said
                )
            };
        }
        self.span.in_scope(|| match self.outcome {
            Outcome::Success if self.is_detail => write!(debug, "succeeded"),
            Outcome::Success => write!(info, "succeeded"),
            Outcome::Failed(_) => write!(warn, "failed"),
            Outcome::Superseded => write!(info, "superseded by a newer attempt: not reported"),
        });
    }

    #[cfg(test)]
    pub(crate) fn blank() -> Box<Self> {
        Self::of(Span::none(), Outcome::Success, &Timings::start(), Ok(0), &Ration::default())
            .expect("it is the first")
    }
}
