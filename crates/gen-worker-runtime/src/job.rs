//! A run, from admission to its one outcome.
//!
//! The pipeline is `Received → Decoded → Local → Ready → Returned → bytes`: each step consumes what the step before it
//! made, so none can be left out. It runs on the user runtime. Beside it, on the control runtime, a supervisor watches the
//! deadline and the cancel signal, and reports exactly one outcome whatever the pipeline does.

mod decode;
mod emit;
mod inject;
mod inputs;
mod invoke;
mod session;
mod store;
mod supervise;
mod timings;
mod voice;

use std::sync::{Arc, atomic::AtomicUsize};

use bytes::Bytes;
use gen_worker_core::{
    ActionContext, Cancellation, Deadline, Extensions, Function, FunctionName, JobFailure, RunFacts,
    WorkerError,
};
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span, info_span};

pub(crate) use self::inject::ModelTable;
use self::{decode::Received, inject::Ready, supervise::Supervisor, timings::Timings, voice::Voice};
use crate::{
    admission::{Admission, Permit},
    command::RunRequest,
    config::RuntimeConfig,
    outbox::Outbox,
    ports::Ports,
    registry::Registry,
};

/// What all jobs share.
pub(crate) struct Workshop {
    pub config: Arc<RuntimeConfig>,
    pub registry: Registry,
    pub admission: Admission,
    pub outbox: Arc<Outbox>,
    pub ports: Ports,
    pub extensions: Arc<Extensions>,
    pub models: ModelTable,
    /// One permit for each function that may hold a GPU.
    pub gpu: Arc<Semaphore>,
    pub gpu_runs: Arc<AtomicUsize>,
    pub users: Handle,
    pub tracker: TaskTracker,
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

    pub(crate) fn model_table(&self) -> &ModelTable {
        &self.0.models
    }

    pub(crate) fn function(&self, name: &FunctionName) -> Option<&Function> {
        self.0.registry.get(name)
    }

    /// Starts an admitted run: its pipeline on the user runtime, its supervisor on this one.
    pub(crate) fn start(
        &self,
        function: Function,
        request: RunRequest,
        cancellation: Cancellation,
        permit: Permit,
    ) {
        let (job, payload, span) = self.prepare(function, request, cancellation.clone(), permit);
        let supervisor = Supervisor::of(&job, cancellation);
        let pipeline = run(Received { job, payload });
        let work = self.0.users.spawn(pipeline.instrument(span.clone()));
        self.0.tracker.spawn(supervisor.watch(work).instrument(span));
    }

    /// What every step of the job has at hand, its payload, and its span.
    fn prepare(
        &self,
        function: Function,
        request: RunRequest,
        cancellation: Cancellation,
        permit: Permit,
    ) -> (Job, Bytes, Span) {
        let span = info_span!("job", run_id = %request.run_id, function = %request.function, attempt = request.attempt);
        let facts = RunFacts {
            run_id: request.run_id,
            function: request.function,
            attempt: request.attempt,
            user_id: request.user_id,
            deadline: request.timeout.map(Deadline::after),
            scope: request.scope,
        };
        let voice = Voice::new(self.0.outbox.clone(), facts.run_id.clone());
        let files = self.0.ports.files.clone();
        let context = ActionContext::new(facts.clone(), cancellation, voice.clone(), files);
        let job = Job {
            shop: self.0.clone(),
            function,
            facts,
            context,
            voice,
            permit: Arc::new(permit),
            timings: Timings::start(),
        };
        (job, request.payload, span)
    }
}

/// What every step of a run has at hand.
pub(crate) struct Job {
    shop: Arc<Workshop>,
    function: Function,
    facts: RunFacts,
    context: ActionContext,
    voice: Arc<Voice>,
    permit: Arc<Permit>,
    timings: Timings,
}

async fn run(received: Received) -> Result<Bytes, JobFailure> {
    let context = received.job.context.clone();
    let ready = tokio::select! {
        biased;
        reason = context.canceled() => return Err(WorkerError::canceled(reason.as_str()).into()),
        ready = prepare(received) => ready?,
    };
    ready.invoke().await?.store().await
}

/// Everything before user code; given up at once when the run is told to stop.
async fn prepare(received: Received) -> Result<Ready, JobFailure> {
    received.decode()?.fetch_inputs().await?.lease_models().await
}
