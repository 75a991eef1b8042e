//! Deltas, under their limits.

use bytes::Bytes;
use futures_util::StreamExt;
use gen_worker_core::{Event, Output, WorkerError};

use super::{Job, invoke::GpuPermit};
use crate::wire::TRUNCATED;

/// Sends every delta of an incremental output, in order, each as soon as there is room. Other outputs pass through.
/// The GPU is held until the last one, since making them is what the function does.
pub(super) async fn all(
    job: &Job,
    (output, gpu): (Output, Option<GpuPermit>),
) -> Result<Output, WorkerError> {
    let Output::Deltas(mut deltas) = output else {
        return Ok(output);
    };
    let mut left = job.shop().config.max_delta_events.map_or(u32::MAX, |max| max.get());
    while left > 0
        && let Some(delta) = deltas.next().await
    {
        job.context.check_canceled()?;
        let json = within(delta?.json, job.shop().config.max_delta);
        job.run.emit_durable(Event::delta(json)).await;
        left -= 1;
    }
    drop((deltas, gpu));
    job.run.emit_durable(Event::output_completed()).await;
    Ok(Output::Value(Bytes::new()))
}

fn within(json: Bytes, limit: gen_worker_core::ByteLimit) -> Bytes {
    if limit.admits(json.len() as u64) { json } else { Bytes::from_static(TRUNCATED) }
}
