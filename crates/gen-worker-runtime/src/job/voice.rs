//! What a run says, for as long as it may.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gen_worker_core::{Event, RunId, ports::EventSink};

use crate::outbox::Outbox;

/// The sink of one run's events. Once the run was reported, what still works for it speaks to nobody.
pub(crate) struct Voice {
    outbox: Arc<Outbox>,
    run_id: RunId,
    silent: AtomicBool,
}

impl Voice {
    pub(crate) fn new(outbox: Arc<Outbox>, run_id: RunId) -> Arc<Self> {
        Arc::new(Self { outbox, run_id, silent: AtomicBool::new(false) })
    }

    /// The run was reported.
    pub(crate) fn silence(&self) {
        self.silent.store(true, Ordering::Relaxed);
    }
}

impl EventSink for Voice {
    fn emit(&self, event: Event) {
        if !self.silent.load(Ordering::Relaxed) {
            self.outbox.emit(event.about(&self.run_id));
        }
    }
}
