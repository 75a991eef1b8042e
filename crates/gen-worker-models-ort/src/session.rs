//! A local model's file to a session, and one call of it. The only place that uses ONNX Runtime's builder.

use std::path::Path;

use gen_worker_core::LocalModel;
use ort::{
    environment::Environment,
    session::{RunOptions, Session, SessionInputValue, builder::SessionBuilder},
};
use tracing::warn;

use crate::{
    config::Provider,
    error::ModelError,
    graph::{Graph, Inputs, TensorSpec, list},
    model::Outputs,
    tensor::Tensor,
};

/// How sessions are made.
#[derive(Clone)]
pub(crate) struct Recipe {
    environment: Environment,
    provider: Provider,
    threads: usize,
}

impl Recipe {
    /// Takes the first provider that works; of none, the processor.
    pub(crate) fn new(
        environment: Environment,
        providers: &[Provider],
        threads: usize,
    ) -> Result<Self, ModelError> {
        let provider = first_that_works(&environment, providers)?;
        Ok(Self { environment, provider, threads })
    }

    /// What sessions run on.
    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// Loads a model. Blocks for as long as that takes.
    pub(crate) fn open(&self, local: &LocalModel) -> Result<(Session, Graph), ModelError> {
        let file = model_file(local)?;
        let session = self.session(file).map_err(|source| ModelError::load(&local.model, source))?;
        let graph = Graph {
            inputs: session.inputs().iter().map(TensorSpec::from_ort).collect(),
            outputs: session.outputs().iter().map(TensorSpec::from_ort).collect(),
        };
        Ok((session, graph))
    }

    fn session(&self, file: &Path) -> ort::Result<Session> {
        builder(&self.environment, self.provider)?.with_intra_threads(self.threads)?.commit_from_file(file)
    }
}

fn first_that_works(environment: &Environment, providers: &[Provider]) -> Result<Provider, ModelError> {
    let mut result = Ok(Provider::Cpu);
    for &provider in providers {
        match builder(environment, provider) {
            Ok(_) => return Ok(provider),
            Err(source) => {
                warn!(%provider, error = %source, "provider does not work here");
                result = Err(ModelError::ProviderMissing { provider, source });
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

/// The file to load: the only one that ends with `.onnx`, else `model.onnx`.
fn model_file(local: &LocalModel) -> Result<&Path, ModelError> {
    let is_onnx = |name: &&String| name.to_ascii_lowercase().ends_with(".onnx");
    let mut graphs = local.files.keys().filter(is_onnx);
    let name = match (graphs.next(), graphs.next()) {
        (Some(only), None) => only.as_str(),
        _ => "model.onnx",
    };
    let file = local.files.get(name).ok_or_else(|| ModelError::Files {
        model: local.model.to_string(),
        files: list(local.files.keys().cloned()),
    })?;
    Ok(file)
}

/// One call. Blocks until it is done, or until `options` are told to terminate.
pub(crate) fn run(
    session: &mut Session,
    inputs: Inputs,
    options: &RunOptions,
) -> Result<Outputs, ModelError> {
    let inputs = inputs
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.into_ort()?)))
        .collect::<Result<Vec<(String, SessionInputValue<'_>)>, ModelError>>()?;
    let outputs = session.run_with_options(inputs, options).map_err(ModelError::run)?;
    let outputs = outputs
        .iter()
        .map(|(name, value)| Ok((name.to_owned(), Tensor::from_ort(name, &value)?)))
        .collect::<Result<_, ModelError>>()?;
    Ok(Outputs::new(outputs))
}

#[cfg(test)]
mod tests {
    use gen_worker_core::ModelRef;

    use super::*;

    fn chosen(files: &[&str]) -> Result<String, String> {
        let local = LocalModel {
            model: ModelRef::parse("org/repo").unwrap(),
            root: "/m".into(),
            files: files.iter().map(|name| (name.to_string(), Path::new("/m").join(name))).collect(),
            size_bytes: 0,
            pin: None,
        };
        model_file(&local).map(|path| path.display().to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn takes_the_only_graph_or_the_one_named_model() {
        assert_eq!(chosen(&["LICENSE", "deep/Net.ONNX"]).unwrap(), "/m/deep/Net.ONNX");
        assert_eq!(chosen(&["a.onnx", "model.onnx", "model.onnx.data"]).unwrap(), "/m/model.onnx");
        assert_eq!(
            chosen(&["a.onnx", "b.onnx"]).unwrap_err(),
            "model cozy:org/repo:latest needs one .onnx file, or one named model.onnx; it has a.onnx, b.onnx"
        );
        assert!(chosen(&[]).unwrap_err().ends_with("it has nothing"));
    }
}
