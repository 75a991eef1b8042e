//! A run, from admission to its one outcome.
//!
//! The pipeline is `Received → Decoded → Local → Ready → Returned → bytes`: each step consumes what the step before it
//! made, so none can be left out. It runs on the user runtime, and reports its own end; [`run`] sees to it that exactly one
//! outcome is reported whatever the pipeline does.

mod decode;
mod emit;
mod inject;
mod inputs;
mod invoke;
mod line;
mod ration;
mod run;
mod session;
mod store;
mod timings;

use std::sync::{Arc, atomic::AtomicUsize};

use bytes::Bytes;
use gen_worker_core::{
    ActionContext, Deadline, Function, FunctionName, JobFailure, RunFacts, WorkerError, layer::Handler,
};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::TaskTracker;

use self::{
    decode::Received,
    inject::Ready,
    run::{Audience, Run},
};
pub(crate) use self::{inject::ModelTable, line::Line, ration::Ration, timings::Stage};
use crate::{
    admission::{Admission, Applicant, Permit, Refusal},
    command::RunRequest,
    config::RuntimeConfig,
    fitness::Unfit,
    hooks::Prepared,
    meters::Meters,
    outbox::Outbox,
    ports::Ports,
    prefetch::Prefetch,
    registry::Registry,
    report::Reports,
};

/// What all jobs share.
pub(crate) struct Workshop {
    pub config: Arc<RuntimeConfig>,
    pub registry: Registry,
    pub unfit: Unfit,
    pub admission: Admission,
    pub outbox: Arc<Outbox>,
    pub ports: Ports,
    pub prepared: Prepared,
    /// What stands around every call; `None`: nothing.
    pub layers: Option<Handler>,
    pub models: ModelTable,
    pub prefetch: Prefetch,
    /// One permit for each function that may hold a GPU.
    pub gpu: Arc<Semaphore>,
    pub gpu_runs: Arc<AtomicUsize>,
    pub users: Handle,
    pub control: Handle,
    pub tracker: TaskTracker,
    pub meters: Arc<Meters>,
    /// `None`: none are left.
    pub reports: Option<Arc<Reports>>,
    /// Of runs that succeeded.
    pub lines: Ration,
}

/// Starts jobs. Clones share the workshop.
#[derive(Clone)]
pub(crate) struct Jobs(Arc<Workshop>);

impl Jobs {
    pub(crate) fn new(workshop: Workshop) -> Self {
        Self(Arc::new(workshop))
    }

    pub(crate) fn admission(&self) -> &Admission {
        &self.0.admission
    }

    pub(crate) fn outbox(&self) -> &Arc<Outbox> {
        &self.0.outbox
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.0.meters
    }

    pub(crate) fn model_table(&self) -> &ModelTable {
        &self.0.models
    }

    pub(crate) fn function(&self, name: &FunctionName) -> Option<&Function> {
        self.0.registry.get(name)
    }

    /// Starts a run, if it is admitted.
    pub(crate) fn start(&self, function: Function, request: RunRequest) -> Result<(), Refusal> {
        let (payload, bytes) = (request.payload.clone(), request.payload.len());
        let (run, permit) = self.admit(&function, request, bytes, Audience::Scheduler)?;
        let key = (run.facts.run_id.clone(), run.facts.attempt);
        // It may have finished since it was looked for; an uncounted attempt before it is history.
        if self.0.outbox.has_result_of(&key) {
            return Err(Refusal::Finished);
        }
        self.0.outbox.begin(&key);
        run.start(permit, |run, permit| {
            carry_out(Received { job: Job::new(run, function, permit), payload })
        });
        Ok(())
    }

    fn admit(
        &self,
        function: &Function,
        request: RunRequest,
        payload_bytes: usize,
        audience: Audience,
    ) -> Result<(Arc<Run>, Arc<Permit>), Refusal> {
        let spec = function.spec();
        self.0.unfit.check(&spec.name).map_err(Refusal::Failed)?;
        let mut facts = RunFacts {
            run_id: request.run_id,
            function: request.function,
            attempt: request.attempt,
            user_id: request.user_id,
            deadline: request.timeout.map(Deadline::after),
            scope: request.scope,
        };
        let span = self.0.ports.tracer.as_ref().map(|tracer| tracer.begin(&facts));
        if let Some(span) = &span {
            facts.scope.trace = span.trace();
        }
        let run = Run::new(self.0.clone(), facts, spec.output_mode, audience, span);
        let applicant = Applicant {
            run_id: &run.facts.run_id,
            attempt: run.facts.attempt,
            spec,
            payload_bytes,
            deadline: run.facts.deadline.map(|deadline| deadline.at),
            is_room: !self.0.outbox.is_full(),
        };
        let admitted = self.0.admission.admit(&applicant, run.clone());
        let permit = admitted.inspect_err(|_| run.refused())?;
        Ok((run, Arc::new(permit)))
    }
}

/// What every step of a run has at hand.
#[derive(Clone)]
pub(crate) struct Job {
    run: Arc<Run>,
    function: Function,
    context: ActionContext,
    permit: Arc<Permit>,
}

impl Job {
    fn new(run: Arc<Run>, function: Function, permit: Arc<Permit>) -> Self {
        let files = run.shop.ports.files.clone();
        let context = ActionContext::new(run.facts.clone(), run.cancellation.clone(), run.clone(), files);
        Self { run, function, context, permit }
    }

    fn shop(&self) -> &Workshop {
        &self.run.shop
    }

    fn facts(&self) -> &RunFacts {
        &self.run.facts
    }

    /// Measures one stage.
    async fn stage<F: Future>(&self, stage: Stage, work: F) -> F::Output {
        let began = self.run.stage_begins();
        let done = self.run.timings.stage(stage, work).await;
        self.run.went_through(stage, began);
        done
    }
}

/// A run that is told to stop before its function was called is given up at once.
async fn carry_out(received: Received) -> Result<Bytes, JobFailure> {
    let context = received.job.context.clone();
    let ready = tokio::select! {
        biased;
        ready = prepare(received) => ready?,
        reason = context.canceled() => return Err(WorkerError::canceled(reason.as_str()).into()),
    };
    context.check_canceled()?;
    let returned = ready.invoke().await?;
    // In a box, like all that few runs need: what a run's future holds is moved with it.
    Box::pin(returned.store()).await
}

/// Everything before user code; given up at once when the run is told to stop.
async fn prepare(received: Received) -> Result<Ready, JobFailure> {
    received.decode()?.fetch_inputs().await?.lease_models().await
}
