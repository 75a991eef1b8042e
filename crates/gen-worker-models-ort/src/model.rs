//! A model in memory, as functions see it.

use std::{fmt, sync::Arc};

use gen_worker_core::{Extensions, Extract, InjectedModel, JobFailure, LocalModel, ModelNeed, WorkerError};
use ndarray::ArrayD;

use crate::{
    error::ModelError,
    graph::{Graph, Inputs, TensorSpec, list},
    session::Recipe,
    tensor::{Element, Tensor},
    thread::SessionThread,
};

/// A model in memory. It stays there at least until the last clone is dropped.
///
/// Calls of one model run one after the other, in the order in which they were made.
#[derive(Clone)]
pub struct OrtModel(Arc<Inner>);

struct Inner {
    local: LocalModel,
    graph: Graph,
    thread: SessionThread,
}

impl OrtModel {
    pub(crate) async fn open(recipe: &Recipe, local: &LocalModel) -> Result<Self, ModelError> {
        let (recipe, opened) = (recipe.clone(), local.clone());
        let (thread, graph) = SessionThread::start(move || recipe.open(&opened)).await?;
        Ok(Self(Arc::new(Inner { local: local.clone(), graph, thread })))
    }

    /// The reference it came from.
    pub fn model_id(&self) -> &str {
        self.0.local.model.known_as()
    }

    /// What it takes, in the graph's order.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.0.graph.inputs
    }

    /// What it gives, in the graph's order.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.0.graph.outputs
    }

    /// Runs the model on a thread of its own: `model.run([("x", array)]).await?`.
    ///
    /// # Errors
    /// `validation`: the inputs are not those of the model. `resource`: memory ran out. `internal`: the model failed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the inference, before it begins or between two of its steps.
    pub async fn run<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Outputs, WorkerError> {
        let inputs = self.checked(inputs).map_err(reported)?;
        self.0.thread.run(inputs).await.map_err(reported)
    }

    /// Like [`run`](Self::run), for blocking functions. It returns when the inference is done, canceled or not.
    ///
    /// # Errors
    /// As `run`.
    ///
    /// # Panics
    /// It was called from async code, which should call `run`.
    pub fn run_blocking<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Outputs, WorkerError> {
        let inputs = self.checked(inputs).map_err(reported)?;
        self.0.thread.run_blocking(inputs).map_err(reported)
    }

    /// Whether it can still be called.
    pub(crate) fn is_alive(&self) -> bool {
        self.0.thread.is_alive()
    }

    /// The files it was loaded from.
    pub(crate) fn local(&self) -> &LocalModel {
        &self.0.local
    }

    fn checked<N: Into<String>, T: Into<Tensor>>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Inputs, ModelError> {
        let inputs = inputs.into_iter().map(|(name, tensor)| (name.into(), tensor.into())).collect();
        self.0.graph.check(&inputs)?;
        Ok(inputs)
    }
}

impl Extract for OrtModel {
    const NEED: ModelNeed = ModelNeed::Resident;

    fn extract(model: Option<&InjectedModel>, _extensions: &Extensions) -> Option<Self> {
        let lease = model?.lease.clone()?;
        lease.downcast::<Self>().ok().map(|model| (*model).clone())
    }
}

impl fmt::Debug for OrtModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OrtModel({})", self.0.local.model)
    }
}

/// What a call gave, by name.
#[derive(Debug)]
pub struct Outputs(Vec<(String, Tensor)>);

impl Outputs {
    pub(crate) fn new(tensors: Vec<(String, Tensor)>) -> Self {
        Self(tensors)
    }

    /// Takes an output out, as an array of `T`.
    ///
    /// # Errors
    /// `validation`: the model gave no such output, or one of another type.
    pub fn take<T: Element>(&mut self, name: &str) -> Result<ArrayD<T>, WorkerError> {
        let position = self.0.iter().position(|(given, _)| given == name);
        self.take_at(position, name)
    }

    /// Takes the first output out, as an array of `T`: for models whose outputs have any name.
    ///
    /// # Errors
    /// `validation`: the model gave no output, or one of another type.
    pub fn take_first<T: Element>(&mut self) -> Result<ArrayD<T>, WorkerError> {
        let position = (!self.0.is_empty()).then_some(0);
        self.take_at(position, "an output")
    }

    fn take_at<T: Element>(
        &mut self,
        position: Option<usize>,
        asked: &str,
    ) -> Result<ArrayD<T>, WorkerError> {
        let taken = position.map(|position| self.0.remove(position));
        let given = match taken {
            Some((name, tensor)) => match T::take(tensor) {
                Ok(array) => return Ok(array),
                Err(tensor) => format!("{name} {tensor}"),
            },
            None => list(self.0.iter().map(|(name, tensor)| format!("{name} {tensor}"))),
        };
        Err(reported(ModelError::Outputs { expected: format!("{asked} {}", T::TYPE), given }))
    }
}

impl IntoIterator for Outputs {
    type Item = (String, Tensor);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// The error as functions pass it on with `?`: its kind and what the caller may read are settled here.
fn reported(error: ModelError) -> WorkerError {
    JobFailure::from(error).into()
}
