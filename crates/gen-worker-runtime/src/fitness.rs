//! Which functions this machine cannot run, whatever a scheduler asks for.

use std::collections::BTreeMap;

use gen_worker_core::{
    ByteSize, Event, FailureKind, FunctionName, FunctionSpec, JobFailure, ModelNeed,
    ports::{EventSink, ModelDevice},
};
use serde_json::Map;
use tracing::warn;

/// The functions that are not offered, and why. A run of one that comes nevertheless is refused as `resource`.
#[derive(Debug, Default)]
pub(crate) struct Unfit(BTreeMap<FunctionName, String>);

impl Unfit {
    /// `vram` is the memory of the first GPU, 0 without one; `models_run_on` is `None` without a model manager.
    pub(crate) fn find<'a>(
        functions: impl Iterator<Item = &'a FunctionSpec>,
        vram: u64,
        models_run_on: Option<ModelDevice>,
    ) -> Self {
        let unfit =
            functions.filter_map(|spec| Some((spec.name.clone(), reason(spec, vram, models_run_on)?)));
        Self(unfit.collect())
    }

    /// Says once what is not offered: to who reads the log, and to the scheduler.
    pub(crate) fn tell(&self, events: &dyn EventSink) {
        for (function, reason) in &self.0 {
            warn!(%function, reason, "function not offered");
            let payload = [("function", function.as_str()), ("reason", reason.as_str())];
            let payload = payload.map(|(key, value)| (key.to_owned(), value.into()));
            events.emit(Event::custom("function.unfit", Map::from_iter(payload)));
        }
    }

    pub(crate) fn contains(&self, function: &str) -> bool {
        self.0.keys().any(|unfit| unfit.as_str() == function)
    }

    /// # Errors
    /// Why the function cannot be run here.
    pub(crate) fn check(&self, function: &FunctionName) -> Result<(), JobFailure> {
        match self.0.get(function) {
            None => Ok(()),
            Some(reason) => Err(JobFailure::new(FailureKind::Resource, reason.clone())),
        }
    }
}

/// A GPU that was asked for is never replaced by the processor in silence.
fn reason(spec: &FunctionSpec, vram: u64, models_run_on: Option<ModelDevice>) -> Option<String> {
    if let Some(least) = spec.resources.min_vram().filter(|least| least.0 > vram) {
        return Some(format!("it needs {least} of device memory; this machine has {}", ByteSize(vram)));
    }
    let has_model = spec.injections.iter().any(|injection| injection.need == ModelNeed::Resident);
    let is_on_processor = models_run_on == Some(ModelDevice::Processor);
    (spec.resources.requires_gpu && has_model && is_on_processor)
        .then(|| "it requires a GPU, and models run on the processor here".to_owned())
}
