//! A graph's file to sessions, and one call of one. The only place that uses ONNX Runtime's builder.

use std::{num::NonZeroUsize, path::Path};

use gen_worker_core::ModelRef;
use ort::{
    environment::Environment,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{RunOptions, Session, SessionInputValue, builder::SessionBuilder},
    value::DynValue,
};
use tracing::warn;

use crate::{
    config::{OrtConfig, Provider},
    error::ModelError,
    graph::{Graph, Inputs, TensorSpec},
    outputs::Outputs,
    tensor::Tensor,
};

/// How sessions are made.
#[derive(Clone)]
pub(crate) struct Recipe {
    environment: Environment,
    provider: Provider,
    threads: usize,
    sessions: NonZeroUsize,
}

impl Recipe {
    /// Takes the first provider that works; of none, the processor.
    pub(crate) fn new(environment: Environment, config: &OrtConfig) -> Result<Self, ModelError> {
        let provider = first_that_works(&environment, &config.providers)?;
        Ok(Self { environment, provider, threads: config.threads(), sessions: config.sessions })
    }

    /// What sessions run on.
    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// Loads a graph once for each call that is to run at the same time. Blocks for as long as that takes.
    pub(crate) fn open(&self, model: &ModelRef, file: &Path) -> Result<(Vec<Session>, Graph), ModelError> {
        let sessions = (0..self.sessions.get()).map(|_| self.session(model, file));
        let sessions = sessions.collect::<Result<Vec<_>, _>>()?;
        let first = sessions.first().expect("there is at least one");
        let graph = Graph {
            inputs: first.inputs().iter().map(TensorSpec::from_ort).collect(),
            outputs: first.outputs().iter().map(TensorSpec::from_ort).collect(),
        };
        Ok((sessions, graph))
    }

    fn session(&self, model: &ModelRef, file: &Path) -> Result<Session, ModelError> {
        let committed = || {
            builder(&self.environment, self.provider)?
                .with_intra_threads(self.threads)?
                .commit_from_file(file)
        };
        let session = committed().map_err(|source| ModelError::load(model, source))?;
        runs_on(&session, self.provider).map_err(|source| ModelError::ProviderMissing {
            provider: self.provider,
            source: source.into(),
        })?;
        Ok(session)
    }
}

/// Whether the session has the provider. The library says that it took one, and silently takes the processor, when what it
/// was told to load is not there (pykeio/ort#567); a session without a provider has no memory of its kind either.
fn runs_on(session: &Session, provider: Provider) -> ort::Result<()> {
    match provider {
        Provider::Cpu => Ok(()),
        Provider::Cuda => {
            let memory =
                MemoryInfo::new(AllocationDevice::CUDA, 0, AllocatorType::Device, MemoryType::Default)?;
            Allocator::new(session, memory).map(drop)
        }
    }
}

fn first_that_works(environment: &Environment, providers: &[Provider]) -> Result<Provider, ModelError> {
    let mut result = Ok(Provider::Cpu);
    for &provider in providers {
        match builder(environment, provider) {
            Ok(_) => return Ok(provider),
            Err(source) => {
                warn!(%provider, error = %source, "provider does not work here");
                result = Err(ModelError::ProviderMissing { provider, source: source.into() });
            }
        }
    }
    result
}

fn builder(environment: &Environment, provider: Provider) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(environment)?;
    match provider {
        Provider::Cpu => Ok(builder),
        Provider::Cuda => with_cuda(builder),
    }
}

#[cfg(feature = "cuda")]
fn with_cuda(builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    // Unless it is told to fail, the library only logs that the card cannot be used, and takes the processor.
    let cuda = ort::ep::CUDA::default().build().error_on_failure();
    Ok(builder.with_execution_providers([cuda])?)
}

#[cfg(not(feature = "cuda"))]
fn with_cuda(_: SessionBuilder) -> ort::Result<SessionBuilder> {
    Err(ort::Error::new("built without the feature `cuda`"))
}

/// The inputs of a call as the library takes them.
pub(crate) type Values = Vec<(String, DynValue)>;

pub(crate) fn values(inputs: Inputs) -> Result<Values, ModelError> {
    inputs.into_iter().map(|(name, tensor)| Ok((name, tensor.into_ort()?))).collect()
}

/// One call. Blocks until it is done, or until `options` are told to terminate.
pub(crate) fn run(
    session: &mut Session,
    values: &Values,
    options: &RunOptions,
) -> Result<Outputs, ModelError> {
    let inputs: Vec<(&str, SessionInputValue<'_>)> =
        values.iter().map(|(name, value)| (name.as_str(), value.into())).collect();
    let outputs = session.run_with_options(inputs, options).map_err(ModelError::run)?;
    let outputs = outputs
        .iter()
        .map(|(name, value)| Ok((name.to_owned(), Tensor::from_ort(name, &value)?)))
        .collect::<Result<_, ModelError>>()?;
    Ok(Outputs::new(outputs))
}
