//! `run`: one run, by the executor of production, with an orchestrator that nobody else sees.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use gen_worker_core::{
    AssetRef, Function, JobFailure, LocalFile, LocalModel, ModelRef, RunScope,
    ports::{EventSink, InputSource, ModelSource},
};
use gen_worker_orchestrator::{OrchestratorClient, OrchestratorConfig, RunSubmission};
use gen_worker_runtime::{Worker, WorkerFailure};

use crate::{
    app::{AppError, project, worker_with},
    assemble::AssembleError,
    call::{CallArguments, CallError, Signature},
    config::Project,
    here::{Folders, Here},
    logging,
    nearest::{did_you_mean, quoted},
};

#[derive(clap::Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    call: CallArguments,
    #[command(flatten)]
    folders: Folders,
}

pub(crate) fn run(functions: Vec<Function>, arguments: RunArguments) -> Result<(), AppError> {
    let RunArguments { call, folders } = arguments;
    let project = project(call.stdin())?;
    let signature = signature(&functions, &call.function)?;
    let call = call.read(Some(signature))?;
    logging::start(&project.env, "warn").map_err(AssembleError::Threads)?;
    // Free ports, so that it never meets another orchestrator; and a failure is said at once, not tried again.
    let config = OrchestratorConfig { max_attempts: 1, ..OrchestratorConfig::local("") };
    let fetches = Fetches::default();
    let mut here = Here::start(config, &folders, project, |project| worker(functions, project, &fetches))?;
    let client = OrchestratorClient::new(here.base_url().clone(), None).map_err(CallError::Client)?;
    match here.unless_ended(call.make(&client, RunSubmission::default())) {
        Some(Ok(())) => leave(here),
        // Whoever is told to stop waits for nothing more.
        Some(Err(error @ (CallError::Interrupted | CallError::Canceled))) => {
            here.abandon();
            Err(error.into())
        }
        Some(Err(error)) => match (here.leave(), error) {
            // The run failed of it.
            (Err(failed @ AppError::Worker(WorkerFailure::SetUp(_))), _) => Err(failed),
            // The run's own failure says more than what comes of it.
            (_, CallError::Failed { message, .. }) if fetches.failed() => {
                Err(AppError::Unfetched { message })
            }
            (_, error) => Err(error.into()),
        },
        None => {
            leave(here)?;
            Err(CallError::Interrupted.into())
        }
    }
}

/// The exit codes of a worker that was deployed say nothing here.
fn leave(here: Here) -> Result<(), AppError> {
    here.leave().map_err(|error| match error {
        AppError::Worker(failure) if !matches!(failure, WorkerFailure::SetUp(_)) => AppError::Ended(failure),
        error => error,
    })
}

/// The schemas of the function of this name.
fn signature(functions: &[Function], name: &str) -> Result<Signature, CallError> {
    let mut runnable: Vec<_> =
        functions.iter().map(Function::spec).filter(|spec| !spec.is_realtime()).collect();
    runnable.sort_by(|one, other| one.name.cmp(&other.name));
    if let Some(spec) = runnable.iter().find(|spec| spec.name.as_str() == name) {
        return Ok(Signature { input: spec.input_schema.clone(), output: spec.output_schema.clone() });
    }
    let names: Vec<&str> = runnable.iter().map(|spec| spec.name.as_str()).collect();
    let guess = did_you_mean(name, names.iter().copied());
    let there = quoted(names);
    Err(CallError::Usage(format!("this worker has no function `{name}` to run{guess}; there are {there}")))
}

fn worker(functions: Vec<Function>, project: Project, fetches: &Fetches) -> Result<Worker, AppError> {
    worker_with(functions, project, |builder, mut ports| {
        ports.inputs = Arc::new(Noted { port: ports.inputs, fetches: fetches.clone() });
        ports.model_source = ports
            .model_source
            .map(|port| -> Arc<dyn ModelSource> { Arc::new(Noted { port, fetches: fetches.clone() }) });
        // What the run does not need is not fetched.
        builder.ports(ports).fetch_ahead(false)
    })
}

/// Whether something that a run needs could not be fetched.
#[derive(Clone, Default)]
struct Fetches(Arc<AtomicBool>);

impl Fetches {
    fn failed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn note<T>(&self, result: Result<T, JobFailure>) -> Result<T, JobFailure> {
        if result.is_err() {
            self.0.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// A port whose failures are noted.
struct Noted<T: ?Sized> {
    port: Arc<T>,
    fetches: Fetches,
}

#[async_trait]
impl InputSource for Noted<dyn InputSource> {
    async fn fetch(
        &self,
        scope: &RunScope,
        asset: &AssetRef,
        directory: &Path,
    ) -> Result<LocalFile, JobFailure> {
        self.fetches.note(self.port.fetch(scope, asset, directory).await)
    }
}

#[async_trait]
impl ModelSource for Noted<dyn ModelSource> {
    async fn ensure(&self, model: &ModelRef, events: Arc<dyn EventSink>) -> Result<LocalModel, JobFailure> {
        self.fetches.note(self.port.ensure(model, events).await)
    }

    fn on_disk(&self) -> Vec<String> {
        self.port.on_disk()
    }

    fn at_once(&self) -> usize {
        self.port.at_once()
    }
}
