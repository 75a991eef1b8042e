//! What a function takes beside its context and payload.

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
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

    /// Whether there is a value of this type.
    pub fn has(&self, wanted: StateType) -> bool {
        self.0.contains_key(&wanted.id)
    }

    /// The value of this type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>()).and_then(|value| value.clone().downcast().ok())
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extensions({})", self.0.len())
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
    /// Those of the extractor.
    pub fn extract<T: Extract>(&self, param: &'static str) -> Result<T, WorkerError> {
        let (context, model, state) = (&self.context, self.models.get(param), &*self.extensions);
        T::extract(&CallParts::new(param, context, model, state))
    }
}

/// What a parameter of one call can be made from.
pub struct CallParts<'a> {
    param: &'static str,
    context: &'a ActionContext,
    model: Option<&'a InjectedModel>,
    state: &'a Extensions,
}

impl<'a> CallParts<'a> {
    /// What a parameter of this name is made from, for tests of an extractor. `model` is `None` where it takes none.
    pub fn new(
        param: &'static str,
        context: &'a ActionContext,
        model: Option<&'a InjectedModel>,
        state: &'a Extensions,
    ) -> Self {
        Self { param, context, model, state }
    }

    /// The parameter's name, as its function writes it.
    pub fn param(&self) -> &'static str {
        self.param
    }

    /// The run's context.
    pub fn context(&self) -> &ActionContext {
        self.context
    }

    /// The model that the parameter's `#[model(…)]` names. It is there for whoever's [`Extract::NEED`] asks for one.
    ///
    /// # Errors
    /// There is none: a fault of the extractor, or of the function that was put together by hand.
    pub fn model(&self) -> Result<&InjectedModel, WorkerError> {
        let none = || format!("parameter `{}` has no model: is its `Extract::NEED` set?", self.param);
        self.model.ok_or_else(|| WorkerError::internal(none()))
    }

    /// What the parameter's model is in memory, for `NEED = ModelNeed::Resident`.
    ///
    /// # Errors
    /// There is no model, or the worker's model manager leases something else than a `T`.
    pub fn lease<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, WorkerError> {
        let lease = self.model()?.lease.clone().and_then(|lease| lease.downcast::<T>().ok());
        lease.ok_or_else(|| {
            let (param, wanted) = (self.param, std::any::type_name::<T>());
            WorkerError::internal(format!(
                "parameter `{param}` takes `{wanted}`, and the worker's model manager leases something else"
            ))
        })
    }

    /// A value of the application.
    ///
    /// # Errors
    /// Nothing made one.
    pub fn state<T: Send + Sync + 'static>(&self) -> Result<State<T>, WorkerError> {
        self.state.get().map(State).ok_or_else(|| {
            let (param, wanted) = (self.param, StateType::of::<T>());
            WorkerError::internal(format!("parameter `{param}` takes {wanted}, and nothing makes it"))
        })
    }
}

/// A type that a function may take as a parameter after its context and payload.
///
/// One of your own is made from what [`CallParts`] has: the run's context, a model, the application's values.
///
/// ```
/// use gen_worker_core::{CallParts, Extract, WorkerError};
///
/// /// The tenant, for functions that refuse runs of nobody.
/// struct Tenant(String);
///
/// impl Extract for Tenant {
///     fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError> {
///         let tenant = parts.context().tenant_id();
///         tenant.map(|id| Self(id.to_owned())).ok_or_else(|| WorkerError::auth("this run has no tenant"))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a parameter of a worker function",
    label = "neither a payload nor an extractor",
    note = "parameters are the context, one payload, then extractors: `OrtModel`, `ModelArtifacts`, `State<T>`, or a type of \
            yours with `impl gen_worker::Extract`",
    note = "a second payload belongs into the first: make it a field of that struct"
)]
pub trait Extract: Sized + Send + 'static {
    /// What it needs of the model that the parameter's `#[model(…)]` names. By default it takes none.
    const NEED: ModelNeed = ModelNeed::None;

    /// Makes the parameter, on the way of every run: it must not block.
    ///
    /// # Errors
    /// What it is made from is not there, or the run is not one that it can be made for. The run fails with this error, and
    /// the function is not called.
    fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError>;

    /// The value of the application that it is made from. A worker without one is refused at its start. By default: none.
    fn needs_state() -> Option<StateType> {
        None
    }
}

/// The type of a value of the application.
#[derive(Debug, Clone, Copy)]
pub struct StateType {
    id: TypeId,
    name: &'static str,
}

impl StateType {
    /// That of `T`.
    pub fn of<T: 'static>() -> Self {
        Self { id: TypeId::of::<T>(), name: std::any::type_name::<T>() }
    }

    /// Whether it is `()`, which is no value.
    pub fn is_nothing(&self) -> bool {
        self.id == TypeId::of::<()>()
    }
}

impl PartialEq for StateType {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for StateType {}

impl fmt::Display for StateType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`State<{}>`", self.name)
    }
}

/// A value of the application, shared by all calls: what a [`SetUp`](crate::SetUp) made, or what was given to the worker's
/// builder. In a test, `State(Arc::new(value))`.
#[derive(Debug)]
pub struct State<T>(pub Arc<T>);

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + Sync + 'static> Extract for State<T> {
    fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError> {
        parts.state()
    }

    fn needs_state() -> Option<StateType> {
        Some(StateType::of::<T>())
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

    fn extract(parts: &CallParts<'_>) -> Result<Self, WorkerError> {
        parts.model().map(|model| Self(model.local.clone()))
    }
}
