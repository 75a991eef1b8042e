//! What a function takes beside its context and payload.

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    ops::Deref,
    path::Path,
    sync::Arc,
};

use crate::{context::ActionContext, failure::WorkerError, model_ref::LocalModel, need::ModelNeed};

/// A model made ready for one parameter of one call.
#[derive(Clone)]
pub struct InjectedModel {
    /// Its files.
    pub local: LocalModel,
    /// What the model manager leased; it stays in memory while this is alive. `None` when only files were needed.
    pub lease: Option<Arc<dyn Any + Send + Sync>>,
}

/// Values that an application registers once and functions take as [`State`].
#[derive(Clone, Default)]
pub struct Extensions(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl Extensions {
    /// Adds a value, in place of an earlier one of its type.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// The value of this type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>()).and_then(|value| value.clone().downcast().ok())
    }
}

/// One call of a function, with its input decoded: what parameters are made from.
pub struct Call<I> {
    /// The run's context.
    pub context: ActionContext,
    /// The payload.
    pub input: I,
    pub(crate) models: HashMap<&'static str, InjectedModel>,
    pub(crate) extensions: Arc<Extensions>,
}

impl<I> Call<I> {
    /// Makes the parameter of this name.
    ///
    /// # Errors
    /// What it is made from is not there.
    pub fn extract<T: Extract>(&self, param: &'static str) -> Result<T, WorkerError> {
        T::extract(self.models.get(param), &self.extensions)
            .ok_or_else(|| WorkerError::internal(format!("no {} for parameter `{param}`", type_name::<T>())))
    }
}

/// A type that a function may take as a parameter after its context and payload.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a worker function",
    note = "parameters are the context, one payload, then extractors: `OrtModel`, `ModelArtifacts`, `State<T>`"
)]
pub trait Extract: Sized + Send + 'static {
    /// What it needs of the model that the parameter names.
    const NEED: ModelNeed;

    /// Makes the parameter; `None` when what it needs is not there.
    fn extract(model: Option<&InjectedModel>, extensions: &Extensions) -> Option<Self>;
}

/// A value registered with the worker's builder, shared by all calls.
#[derive(Debug, Clone)]
pub struct State<T>(pub Arc<T>);

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + Sync + 'static> Extract for State<T> {
    const NEED: ModelNeed = ModelNeed::None;

    fn extract(_model: Option<&InjectedModel>, extensions: &Extensions) -> Option<Self> {
        extensions.get().map(Self)
    }
}

/// A model as files on disk, for functions that load it themselves.
#[derive(Debug, Clone)]
pub struct ModelArtifacts(LocalModel);

impl ModelArtifacts {
    /// The reference it came from.
    pub fn model_id(&self) -> &str {
        self.0.model.as_str()
    }

    /// The directory of its files.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// A file by its path below the root.
    ///
    /// # Errors
    /// The model has no such file; the error lists those it has.
    pub fn path(&self, name: &str) -> Result<&Path, WorkerError> {
        self.0.files.get(name).map(|path| path.as_path()).ok_or_else(|| {
            let files = self.0.files.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            WorkerError::validation(format!("model {} has no file {name}; it has {files}", self.model_id()))
        })
    }
}

impl Extract for ModelArtifacts {
    const NEED: ModelNeed = ModelNeed::Files;

    fn extract(model: Option<&InjectedModel>, _extensions: &Extensions) -> Option<Self> {
        model.map(|model| Self(model.local.clone()))
    }
}
