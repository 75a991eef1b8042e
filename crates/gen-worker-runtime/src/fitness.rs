//! Which functions this machine cannot run, whatever a scheduler asks for.

use std::collections::BTreeMap;

use gen_worker_core::{
    ByteSize, Event, FailureKind, FunctionName, FunctionSpec, JobFailure, ModelNeed,
    ports::{EventSink, ModelDevice},
};
use serde_json::Map;
use tracing::warn;

use crate::host::GpuFacts;

/// The functions that are not offered, and why. A run of one that comes nevertheless is refused as `resource`.
#[derive(Debug, Default)]
pub(crate) struct Unfit(BTreeMap<FunctionName, String>);

impl Unfit {
    /// `models_run_on` is `None` without a model manager.
    pub(crate) fn find<'a>(
        functions: impl Iterator<Item = &'a FunctionSpec>,
        gpu: &GpuFacts,
        models_run_on: Option<ModelDevice>,
    ) -> Self {
        let unfit = functions.filter_map(|spec| Some((spec.name.clone(), reason(spec, gpu, models_run_on)?)));
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
fn reason(spec: &FunctionSpec, gpu: &GpuFacts, models_run_on: Option<ModelDevice>) -> Option<String> {
    let vram = gpu.memory_bytes;
    if let Some(least) = spec.resources.min_vram().filter(|least| least.0 > vram) {
        return Some(format!("it needs {least} of device memory; this machine has {}", ByteSize(vram)));
    }
    if !spec.resources.requires_gpu {
        return None;
    }
    let has_model = spec.injections.iter().any(|injection| injection.need == ModelNeed::Resident);
    match models_run_on {
        Some(ModelDevice::Processor) if has_model => {
            Some("it requires a GPU, and models run on the processor here".to_owned())
        }
        // It has one, whatever the driver says that is asked.
        Some(ModelDevice::Gpu) => None,
        _ if gpu.count == 0 => Some("it requires a GPU, and this machine shows none".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{Call, Function, ResourceRequirements, WorkerError};

    use super::*;

    #[test]
    fn what_requires_a_gpu_needs_one_that_somebody_sees() {
        let function = Function::builder::<serde_json::Value>("f", "tests")
            .resources(ResourceRequirements { requires_gpu: true, ..Default::default() })
            .asynchronous(|_: Call<serde_json::Value>| async { Ok::<_, WorkerError>(()) })
            .unwrap();
        let fits = |count, models_run_on| {
            let gpu = GpuFacts { count, ..Default::default() };
            reason(function.spec(), &gpu, models_run_on).is_none()
        };
        let (processor, card) = (Some(ModelDevice::Processor), Some(ModelDevice::Gpu));
        assert_eq!([fits(0, None), fits(0, processor), fits(0, card)], [false, false, true]);
        assert_eq!([fits(1, None), fits(1, processor), fits(1, card)], [true; 3]);
    }
}
