//! Deltas, under their limits.

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use gen_worker_core::{Delta, Event, Output, WorkerError};

use super::Job;
use crate::wire::TRUNCATED;

type Deltas = BoxStream<'static, Result<Delta, WorkerError>>;

/// Sends every delta of an incremental output, in order, each as soon as there is room. Other outputs pass through.
/// The GPU is held until the last one, since making them is what the function does.
pub(super) async fn all<G: Send>(
    job: &Job,
    (output, gpu): (Output, Option<G>),
) -> Result<Output, WorkerError> {
    match output {
        Output::Deltas(deltas) => Box::pin(each(job, deltas, gpu)).await,
        output => Ok(output),
    }
}

async fn each<G: Send>(job: &Job, mut deltas: Deltas, gpu: Option<G>) -> Result<Output, WorkerError> {
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
