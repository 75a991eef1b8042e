//! A graph's file to sessions, and one call of one. The only place that uses ONNX Runtime's builder.

use std::{num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use gen_worker_core::ModelRef;
use ort::{
    environment::Environment,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{
        RunOptions, Session, SessionInputValue,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::DynValue,
};
use tracing::{debug, warn};

use crate::{
    config::{OrtConfig, Provider},
    error::ModelError,
    graph::{Graph, Inputs, TensorSpec},
    kept::{self, KeepError, Kept},
    library::Engine,
    outputs::Outputs,
    pool::Work,
    tensor::Tensor,
};

/// How sessions are made.
#[derive(Clone)]
pub(crate) struct Recipe {
    environment: Environment,
    provider: Provider,
    /// Bytes of each device that one session may take.
    limits: Vec<u64>,
    threads: usize,
    sessions: NonZeroUsize,
    /// The longest call that is made where it is awaited.
    short: Duration,
    /// The longest warm-up of a graph.
    warm_up: Duration,
    /// The library's version, if graphs are kept.
    keeps: Option<String>,
}

/// A graph in memory.
pub(crate) struct Opened {
    pub(crate) sessions: Vec<Session>,
    pub(crate) graph: Graph,
    pub(crate) kept: Option<Arc<Kept>>,
}

impl Recipe {
    /// For the provider that works. `limits` are the bytes that models may take of each device.
    pub(crate) fn new(engine: &Engine, config: &OrtConfig, provider: Provider, limits: Vec<u64>) -> Self {
        Self {
            environment: engine.environment.clone(),
            provider,
            limits,
            threads: config.threads(),
            sessions: config.sessions,
            short: config.short_call,
            warm_up: config.warm_up,
            keeps: engine.version.clone().filter(|_| config.host_tier),
        }
    }

    /// What sessions run on.
    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// The memory that sessions on this device can let go of, in the library's words; empty: none.
    pub(crate) fn arenas(&self, device: usize) -> String {
        match self.provider {
            Provider::Cpu => "cpu:0".into(),
            Provider::Cuda => format!("gpu:{device}"),
            Provider::TensorRt | Provider::CoreMl | Provider::DirectMl | Provider::OpenVino => String::new(),
        }
    }

    /// The longest call that is made where it is awaited.
    pub(crate) fn short_call(&self) -> Duration {
        self.short
    }

    /// The longest warm-up of a graph; zero: there is none.
    pub(crate) fn warm_up(&self) -> Duration {
        self.warm_up
    }

    fn builder(&self, device: usize) -> ort::Result<SessionBuilder> {
        builder(&self.environment, self.provider, device, self.limit(device))
    }

    fn limit(&self, device: usize) -> u64 {
        self.limits.get(device).copied().unwrap_or(u64::MAX)
    }

    /// Loads a graph onto a device, once for each call that is to run at the same time; from what was kept, if it was. Blocks for
    /// as long as that takes.
    pub(crate) fn open(
        &self,
        model: &ModelRef,
        file: &Path,
        device: usize,
        kept: Option<Arc<Kept>>,
    ) -> Result<Opened, ModelError> {
        let kept = kept.or_else(|| self.keep(model, file, device));
        let (sessions, kept) = match (self.sessions(model, file, device, kept.as_deref()), kept) {
            (Err(error), Some(kept)) => {
                warn!(%model, %error, "the model's optimised form is of no use");
                if matches!(error, ModelError::Load { .. }) {
                    kept.discard().unwrap_or_else(|error| warn!(%model, %error, "it cannot be removed"));
                }
                (self.sessions(model, file, device, None)?, None)
            }
            (sessions, kept) => (sessions?, kept),
        };
        let first = sessions.first().expect("there is at least one");
        let graph = Graph {
            inputs: first.inputs().iter().map(TensorSpec::from_ort).collect(),
            outputs: first.outputs().iter().map(TensorSpec::from_ort).collect(),
        };
        Ok(Opened { sessions, graph, kept })
    }

    fn sessions(
        &self,
        model: &ModelRef,
        file: &Path,
        device: usize,
        kept: Option<&Kept>,
    ) -> Result<Vec<Session>, ModelError> {
        (0..self.sessions.get()).map(|_| self.session(model, file, device, kept)).collect()
    }

    /// What the graph comes back from later. A graph that cannot be kept is run as it is.
    fn keep(&self, model: &ModelRef, file: &Path, device: usize) -> Option<Arc<Kept>> {
        let version = self.keeps.as_deref()?;
        let place = kept::place(file, version, &self.provider.to_string()).map_err(KeepError::from);
        match place.and_then(|place| Kept::at(&place, |graph| self.export(file, graph, device))) {
            Ok(kept) => Some(Arc::new(kept)),
            Err(error) => {
                warn!(%model, error = &error as &dyn std::error::Error, "the model's weights are not kept");
                None
            }
        }
    }

    /// Writes the optimised graph, with its weights beside it. Optimisations that depend on the kind of processor are left
    /// out: the disk may be another machine's tomorrow.
    fn export(&self, file: &Path, graph: &Path, device: usize) -> ort::Result<()> {
        self.builder(device)?
            .with_optimization_level(GraphOptimizationLevel::Level2)?
            .with_optimized_model_path(graph)?
            .with_config_entry("session.optimized_model_external_initializers_file_name", kept::WEIGHTS)?
            .with_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")?
            .commit_from_file(file)
            .map(drop)
    }

    fn session(
        &self,
        model: &ModelRef,
        file: &Path,
        device: usize,
        kept: Option<&Kept>,
    ) -> Result<Session, ModelError> {
        let committed = || {
            let builder = self.builder(device)?.with_intra_threads(self.threads)?;
            match kept {
                Some(kept) => self.share(builder, kept)?.commit_from_file(&kept.graph),
                None => { builder }.commit_from_file(file),
            }
        };
        let session = committed().map_err(|source| ModelError::load(model, source))?;
        if self.provider == Provider::Cpu
            && let Err(error) = begin_arena(&session)
        {
            // It runs without an arena as well.
            debug!(%model, %error, "the session has no arena");
        }
        runs_on(&session, self.provider, device).map_err(|source| ModelError::ProviderMissing {
            provider: self.provider,
            source: source.into(),
        })?;
        Ok(session)
    }

    /// On the processor sessions use the very memory of the weights, which therefore are not repacked; on a device they copy
    /// it.
    fn share(&self, builder: SessionBuilder, kept: &Kept) -> ort::Result<SessionBuilder> {
        let builder =
            builder.with_optimization_level(GraphOptimizationLevel::Disable)?.with_prepacking(false)?;
        kept.weights.iter().try_fold(builder, |builder, (name, value)| {
            Ok(if self.provider == Provider::Cpu {
                builder.with_initializer(name, value.clone())?
            } else {
                builder.with_external_initializer(name, value.clone())?
            })
        })
    }
}

/// Takes a little of the session's arena, which takes a MiB for it from the system. The piece that it takes first it never gives back
/// (`BFCArena` considers it for no shrinkage), and that would be what the first call needs.
fn begin_arena(session: &Session) -> ort::Result<()> {
    let (main, kind) = (AllocationDevice::CPU, MemoryType::Default);
    let arena = Allocator::new(session, MemoryInfo::new(main, 0, AllocatorType::Arena, kind)?)?;
    ort::value::Tensor::<u8>::new(&arena, [1_usize]).map(drop)
}

/// Whether the session has the provider. The library says that it took one, and silently takes the processor, when what it
/// was told to load is not there (pykeio/ort#567); a session without a provider has no memory of its kind either.
fn runs_on(session: &Session, provider: Provider, device: usize) -> ort::Result<()> {
    memory_of(session, provider, device).map(drop)
}

/// A graph of two nodes.
const SMALL: &[u8] = include_bytes!("../tests/fixtures/double_plus_one.onnx");

/// Whether a session runs on this provider.
pub(crate) fn try_out(engine: &Engine, provider: Provider) -> Result<(), ModelError> {
    let tried = || {
        let session = builder(&engine.environment, provider, 0, u64::MAX)?.commit_from_memory(SMALL)?;
        runs_on(&session, provider, 0)
    };
    tried().map_err(|source: ort::Error| ModelError::ProviderMissing { provider, source: source.into() })
}

/// Where a session has its tensors.
pub(crate) fn memory_of(session: &Session, provider: Provider, device: usize) -> ort::Result<Allocator> {
    if !provider.is_nvidia() {
        return Ok(Allocator::default());
    }
    let (card, kind) = (AllocationDevice::CUDA, MemoryType::Default);
    Allocator::new(session, MemoryInfo::new(card, device as i32, AllocatorType::Device, kind)?)
}

/// The first of these providers on which a session runs; of none, the processor. Blocks for as long as that takes, which is
/// seconds where a driver is to be woken.
pub(crate) fn first_that_works(engine: &Engine, providers: &[Provider]) -> Result<Provider, ModelError> {
    let mut result = Ok(Provider::Cpu);
    for &provider in providers {
        match try_out(engine, provider) {
            Ok(()) => return Ok(provider),
            Err(error) => {
                warn!(%provider, error = &error as &dyn std::error::Error, "provider does not work here");
                result = Err(error);
            }
        }
    }
    result
}

/// The builder with these providers, or an error without the feature. Unless it is told to fail, the library only logs that a
/// provider cannot be used, and takes the processor.
macro_rules! built_with {
    ($feature:tt, $builder:ident, $($provider:expr),+) => {{
        #[cfg(feature = $feature)]
        {
            let providers = [$($provider.build().error_on_failure()),+];
            Ok($builder.with_execution_providers(providers)?)
        }
        #[cfg(not(feature = $feature))]
        {
            drop($builder);
            Err(ort::Error::new(concat!("built without the feature `", $feature, "`")))
        }
    }};
}

/// A session on this device, which takes so many bytes of it at most.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "only cards are numbered"))]
fn builder(
    environment: &Environment,
    provider: Provider,
    device: usize,
    limit: u64,
) -> ort::Result<SessionBuilder> {
    let builder = Session::builder(environment)?;
    match provider {
        Provider::Cpu => Ok(builder),
        Provider::Cuda => built_with!("cuda", builder, cuda(device, limit)),
        Provider::TensorRt => built_with!(
            "tensorrt",
            builder,
            ort::ep::TensorRT::default().with_device_id(device as i32),
            cuda(device, limit)
        ),
        Provider::CoreMl => built_with!("coreml", builder, ort::ep::CoreML::default()),
        Provider::DirectMl => built_with!("directml", builder, ort::ep::DirectML::default()),
        Provider::OpenVino => built_with!("openvino", builder, ort::ep::OpenVINO::default()),
    }
}

/// Its arena grows by what is asked for, in the place of doubling, and no further than models may: what it takes is to be seen by
/// whoever measures, and to be given back piece by piece.
#[cfg(feature = "cuda")]
fn cuda(device: usize, limit: u64) -> ort::ep::CUDA {
    use ort::ep::ArenaExtendStrategy;

    let cuda = ort::ep::CUDA::default()
        .with_device_id(device as i32)
        .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
    match usize::try_from(limit) {
        Ok(limit) if limit < usize::MAX => cuda.with_memory_limit(limit),
        _ => cuda,
    }
}

/// The inputs of a call as the library takes them.
pub(crate) type Values = Vec<(String, DynValue)>;

pub(crate) fn values(inputs: Inputs) -> Result<Values, ModelError> {
    inputs.into_iter().map(|(name, tensor)| Ok((name, tensor.into_ort()?))).collect()
}

impl Work for Values {
    type Output = Outputs;

    fn elements(&self) -> usize {
        let of = |value: &DynValue| value.dtype().tensor_shape().map_or(0, |shape| shape.num_elements());
        self.iter().map(|(_, value)| of(value)).sum()
    }

    fn run(&mut self, session: &mut Session, options: &RunOptions) -> Result<Outputs, ModelError> {
        run(session, self, options)
    }
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

#[cfg(test)]
mod tests {
    use gen_worker_core::config::{ConfigErrors, Env};

    use super::*;
    use crate::library;

    #[test]
    fn an_arena_is_limited_by_the_budget_of_its_own_device() {
        let engine = library::for_tests();
        let config = OrtConfig::from_env(&Env::default(), &mut ConfigErrors::default());
        let recipe = Recipe::new(&engine, &config, Provider::Cuda, vec![80, 24]);
        assert_eq!([0, 1].map(|device| recipe.limit(device)), [80, 24]);
    }
}
