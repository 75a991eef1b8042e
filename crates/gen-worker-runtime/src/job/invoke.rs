//! The call of user code.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use gen_worker_core::{
    Body, JobFailure, Output, OutputBody, RawCall, RawOutput, WorkerError,
    layer::{Answer, Handler, Invocation},
    ports::OutputTarget,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::Span;

use super::{Job, emit, inject::Ready, inputs::RunDirectory, timings::Stage};
use crate::report::Panicked;

/// A run whose function has returned. The GPU is free again; the input files are still there.
pub(crate) struct Returned {
    pub job: Job,
    pub output: Output,
    pub target: Option<Arc<dyn OutputTarget>>,
    /// Kept until the output is stored, which may be a file beside the inputs.
    pub _directory: Option<RunDirectory>,
}

impl Ready {
    /// Calls the function, and for a stream of deltas sends each of them.
    pub(crate) async fn invoke(self) -> Result<Returned, JobFailure> {
        let Self { job, input, models, target, directory } = self;
        let extensions = job.shop().prepared.state();
        let call = RawCall { context: job.context.clone(), input, models, extensions };
        let output = match job.shop().layers.clone() {
            None => through(&job, call).await?,
            Some(layers) => Box::pin(through_layers(&job, &layers, call)).await?,
        };
        Ok(Returned { job, output, target, _directory: directory })
    }
}

/// The call, and every delta of its output.
async fn through(job: &Job, call: RawCall) -> Result<Output, JobFailure> {
    let gpu = gpu_of(job).await?;
    let called = async {
        match emit::all(job, held(call_body(job, call, gpu).await?)).await {
            Ok(output) => Ok(output),
            Err(error) => Err(JobFailure::from(error)),
        }
    };
    job.stage(Stage::Run, called).await
}

/// The same within the application's layers, which see the call as it is made and not its deltas.
async fn through_layers(job: &Job, layers: &Handler, call: RawCall) -> Result<Output, JobFailure> {
    let (made_by, spec, context) = (job.clone(), job.function.spec().clone(), job.context.clone());
    let invocation = Invocation::new(spec, context, async move {
        let job = made_by;
        let gpu = gpu_of(&job).await?;
        let (output, gpu) = job.stage(Stage::Run, call_body(&job, call, gpu)).await?;
        Ok(Answer::holding(output, gpu))
    });
    let answer = layers.handle(invocation).await?;
    Ok(job.stage(Stage::Run, emit::all(job, held(answer.into_parts()))).await?)
}

/// A place on a GPU, if the function asks for one.
async fn gpu_of(job: &Job) -> Result<Option<GpuPermit>, JobFailure> {
    match job.function.spec().resources.requires_gpu {
        true => Ok(Some(job.stage(Stage::GpuWait, Box::pin(GpuPermit::take(job))).await?)),
        false => Ok(None),
    }
}

/// An async body is a part of the pipeline and goes when that is dropped. A blocking one has a thread of its own, which
/// nothing can stop: the thread holds the run's permits until it is done.
async fn call_body(
    job: &Job,
    call: RawCall,
    gpu: Option<GpuPermit>,
) -> Result<(Output, Option<GpuPermit>), JobFailure> {
    match job.function.body().clone() {
        Body::Async(body) => Ok((body(call).await?, gpu)),
        Body::Blocking(body) => {
            let (permit, span) = (job.permit.clone(), Span::current());
            let thread = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                // The thread may have been waited for, and its run reported since.
                let called = || call.context.check_canceled().and_then(|()| span.in_scope(|| body(call)));
                let output = catch_unwind(AssertUnwindSafe(called));
                (output.map_err(|payload| Panicked::caught(&*payload)), gpu)
            });
            // It fails only when the worker ends before the thread has begun.
            let (output, gpu) =
                thread.await.map_err(|error| panicked(Panicked::caught(&error.to_string())))?;
            Ok((output.map_err(panicked)??, gpu))
        }
    }
}

/// An output that is still to be made keeps the GPU until it is.
fn held<G: Send + 'static>((output, gpu): (Output, Option<G>)) -> (Output, Option<G>) {
    match &output {
        Output::Raw(RawOutput { body: OutputBody::Stream(chunks), .. }) => {
            chunks.hold(gpu);
            (output, None)
        }
        Output::Raw(_) | Output::Value(_) | Output::Deltas(_) => (output, gpu),
    }
}

/// User code panicked: the caller is told only that.
pub(super) fn panicked(panic: Panicked) -> JobFailure {
    JobFailure::from(panic).detailed("InternalError: the function panicked")
}

/// A place on a GPU, from the call of a function to its return.
pub(crate) struct GpuPermit {
    _place: OwnedSemaphorePermit,
    running: Arc<AtomicUsize>,
}

impl GpuPermit {
    /// Waits for a place, unless the run is told to stop first.
    async fn take(job: &Job) -> Result<Self, WorkerError> {
        let semaphore: Arc<Semaphore> = job.shop().gpu.clone();
        let place = tokio::select! {
            place = semaphore.acquire_owned() => place.expect("the semaphore is never closed"),
            reason = job.context.canceled() => return Err(WorkerError::canceled(reason.as_str())),
        };
        job.shop().gpu_runs.fetch_add(1, Ordering::Relaxed);
        Ok(Self { _place: place, running: job.shop().gpu_runs.clone() })
    }
}

impl Drop for GpuPermit {
    fn drop(&mut self) {
        self.running.fetch_sub(1, Ordering::Relaxed);
    }
}
