//! Payload bytes → the function's own input, and what the payload asks for beside it.

use std::{any::Any, sync::Arc};

use bytes::Bytes;
use gen_worker_core::{
    AssetSlot, FailureKind, InjectionSpec, JobFailure, ModelRef, OutputMode, Payload, Secret,
    ports::OutputTarget,
};

use super::Job;

/// The payload's field that says where the output goes.
const OUTPUT_UPLOAD: &str = "output_upload";

/// A run that was admitted.
pub(crate) struct Received {
    pub job: Job,
    pub payload: Bytes,
}

/// A run whose payload fits its function.
pub(crate) struct Decoded {
    pub job: Job,
    pub input: Box<dyn Any + Send>,
    pub assets: Vec<AssetSlot>,
    pub models: Vec<(InjectionSpec, ModelRef)>,
    pub target: Option<Arc<dyn OutputTarget>>,
}

impl Received {
    /// Everything that can be refused without touching the network is refused here.
    pub(crate) fn decode(self) -> Result<Decoded, JobFailure> {
        let Self { job, payload } = self;
        let mut payload = Payload::parse(&payload)?;
        let target = output_target(&job, &mut payload)?;
        let spec = job.function.spec();
        let refs =
            spec.injections.iter().filter(|injection| injection.need != gen_worker_core::ModelNeed::None);
        let models = refs
            .map(|injection| Ok((*injection, job.shop().models.resolve(injection, &payload, spec)?)))
            .collect::<Result<_, JobFailure>>()?;
        let decoded = job.function.decode(payload)?;
        Ok(Decoded { job, input: decoded.input, assets: decoded.assets, models, target })
    }
}

/// Takes `output_upload` out of the payload, unless the function's own type has such a field.
fn output_target(job: &Job, payload: &mut Payload<'_>) -> Result<Option<Arc<dyn OutputTarget>>, JobFailure> {
    let spec = job.function.spec();
    if !payload.has(OUTPUT_UPLOAD) || spec.input_field(OUTPUT_UPLOAD).is_some() {
        return Ok(None);
    }
    let Some(output_upload) = payload.take_json(OUTPUT_UPLOAD)? else {
        return Ok(None);
    };
    if spec.output_mode == OutputMode::Incremental {
        let text = "`output_upload` needs a function with one output; this one streams";
        return Err(JobFailure::new(FailureKind::Validation, text));
    }
    job.shop().ports.outputs.target(Secret::new(output_upload)).map(Some)
}
