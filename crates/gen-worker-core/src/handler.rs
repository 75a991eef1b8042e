//! Functions with their types erased, and the typed way to make them.

use std::{any::Any, collections::HashMap, fmt, future::Future, marker::PhantomData, sync::Arc};

use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use crate::{
    asset::AssetSlot,
    context::ActionContext,
    extract::{Call, Extensions, Extract, InjectedModel, StateType},
    failure::WorkerError,
    function::{FunctionSpec, InjectionSpec, ModelBinding, OutputMode, ResourceRequirements},
    id::{FunctionName, IdError},
    output::{IntoOutput, Output},
    payload::{Payload, PayloadError},
    realtime::RealtimeSocket,
    schema::schema_of,
};

/// A payload decoded into the function's own type.
pub struct Decoded {
    /// The value, of the type that the function's body expects.
    pub input: Box<dyn Any + Send>,
    /// The assets in it, whose files are still to be fetched.
    pub assets: Vec<AssetSlot>,
}

/// A type that a function may take as its payload: any `DeserializeOwned + JsonSchema`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a function's payload",
    note = "derive `serde::Deserialize` and `schemars::JsonSchema` for it, or take `serde_json::Value`"
)]
pub trait Input: DeserializeOwned + JsonSchema + Send + 'static {}

impl<T: DeserializeOwned + JsonSchema + Send + 'static> Input for T {}

/// One call with its types erased.
pub struct RawCall {
    /// The run's context.
    pub context: ActionContext,
    /// What [`Function::decode`] returned.
    pub input: Box<dyn Any + Send>,
    /// The models by parameter.
    pub models: HashMap<&'static str, InjectedModel>,
    /// The application's values.
    pub extensions: Arc<Extensions>,
}

impl RawCall {
    fn typed<I: 'static>(self) -> Call<I> {
        let input = self.input.downcast().expect("a function is called with what it decoded itself");
        Call { context: self.context, input: *input, models: self.models, extensions: self.extensions }
    }
}

type AsyncBody = dyn Fn(RawCall) -> BoxFuture<'static, Result<Output, WorkerError>> + Send + Sync;
type BlockingBody = dyn Fn(RawCall) -> Result<Output, WorkerError> + Send + Sync;

/// How a function is called.
#[derive(Clone)]
pub enum Body {
    /// As a future.
    Async(Arc<AsyncBody>),
    /// On a thread of its own, which it may block.
    Blocking(Arc<BlockingBody>),
}

/// A function: its spec, how its payload is decoded, and its body.
#[derive(Clone)]
pub struct Function {
    spec: Arc<FunctionSpec>,
    decode: fn(Payload<'_>) -> Result<Decoded, PayloadError>,
    body: Body,
}

impl Function {
    /// Starts a function that takes `I` as its payload.
    ///
    /// ```
    /// use gen_worker_core::{Call, Function};
    ///
    /// let double = Function::builder::<serde_json::Value>("double", module_path!())
    ///     .asynchronous(|call: Call<serde_json::Value>| async move {
    ///         Ok::<_, gen_worker_core::WorkerError>(call.input["n"].as_i64().unwrap_or(0) * 2)
    ///     })
    ///     .unwrap();
    /// assert_eq!(double.spec().name.as_str(), "double");
    /// ```
    pub fn builder<I: Input>(name: &'static str, module: &'static str) -> FunctionBuilder<I> {
        FunctionBuilder {
            name,
            module,
            resources: Default::default(),
            injections: Vec::new(),
            states: Vec::new(),
            input_schema: schema_of::<I>(),
            decode: decode::<I>,
            mode: None,
            input: PhantomData,
        }
    }

    /// Starts a handler of realtime sessions: in the place of a payload it takes the session's socket.
    ///
    /// ```
    /// use gen_worker_core::{Call, Function, RealtimeSocket, WorkerError};
    ///
    /// let mirror = Function::realtime("mirror", module_path!())
    ///     .asynchronous(|call: Call<RealtimeSocket>| async move {
    ///         while let Some(frame) = call.input.recv().await {
    ///             call.input.send(frame).await;
    ///         }
    ///         Ok::<_, WorkerError>(())
    ///     })
    ///     .unwrap();
    /// assert!(mirror.spec().is_realtime());
    /// ```
    pub fn realtime(name: &'static str, module: &'static str) -> FunctionBuilder<RealtimeSocket> {
        FunctionBuilder {
            name,
            module,
            resources: Default::default(),
            injections: Vec::new(),
            states: Vec::new(),
            input_schema: Value::Null,
            decode: decode::<IgnoredAny>,
            mode: Some(OutputMode::Realtime),
            input: PhantomData,
        }
    }

    /// What is known of it.
    pub fn spec(&self) -> &Arc<FunctionSpec> {
        &self.spec
    }

    /// Decodes a payload into its input type.
    ///
    /// # Errors
    /// The payload does not fit the type.
    pub fn decode(&self, payload: Payload<'_>) -> Result<Decoded, PayloadError> {
        (self.decode)(payload)
    }

    /// How it is called.
    pub fn body(&self) -> &Body {
        &self.body
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({})", self.spec.name)
    }
}

/// A function in the making. The macro writes these calls; without it they are written by hand.
#[must_use = "a function exists once `asynchronous` or `blocking` was called"]
pub struct FunctionBuilder<I> {
    name: &'static str,
    module: &'static str,
    resources: ResourceRequirements,
    injections: Vec<InjectionSpec>,
    states: Vec<StateType>,
    input_schema: Value,
    decode: fn(Payload<'_>) -> Result<Decoded, PayloadError>,
    /// `None`: as the body's output says.
    mode: Option<OutputMode>,
    input: PhantomData<fn() -> I>,
}

impl<I: 'static> FunctionBuilder<I> {
    /// What it asks of the machine.
    pub fn resources(mut self, resources: ResourceRequirements) -> Self {
        self.resources = resources;
        self
    }

    /// Fills the parameter `param` of type `T` with the model that `binding` names.
    pub fn model<T: Extract>(mut self, param: &'static str, binding: ModelBinding) -> Self {
        let type_name = std::any::type_name::<T>();
        self.injections.push(InjectionSpec { param, type_name, binding, need: T::NEED });
        self.takes::<T>()
    }

    /// Says that a parameter is of type `T`, so that a worker without what it is made from is refused at its start.
    pub fn takes<T: Extract>(mut self) -> Self {
        self.states.extend(T::needs_state());
        self
    }

    /// The function, with an async body.
    ///
    /// # Errors
    /// Its name is no function name.
    pub fn asynchronous<F, Fut, O, E>(self, body: F) -> Result<Function, IdError>
    where
        F: Fn(Call<I>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, E>> + Send + 'static,
        O: IntoOutput,
        E: Into<WorkerError>,
    {
        self.build::<O>(Body::Async(Arc::new(move |call| {
            let result = body(call.typed());
            Box::pin(async move { result.await.map_err(Into::into)?.into_output() })
        })))
    }

    /// The function, with a body that blocks its thread.
    ///
    /// # Errors
    /// Its name is no function name.
    pub fn blocking<F, O, E>(self, body: F) -> Result<Function, IdError>
    where
        F: Fn(Call<I>) -> Result<O, E> + Send + Sync + 'static,
        O: IntoOutput,
        E: Into<WorkerError>,
    {
        self.build::<O>(Body::Blocking(Arc::new(move |call| {
            body(call.typed()).map_err(Into::into)?.into_output()
        })))
    }

    fn build<O: IntoOutput>(self, body: Body) -> Result<Function, IdError> {
        let spec = FunctionSpec {
            name: FunctionName::parse(self.name)?,
            module: self.module,
            resources: self.resources,
            input_type: std::any::type_name::<I>(),
            output_type: O::type_name(),
            input_schema: self.input_schema,
            output_schema: O::schema(),
            output_mode: self.mode.unwrap_or(O::MODE),
            injections: self.injections,
            states: self.states,
        };
        Ok(Function { spec: Arc::new(spec), decode: self.decode, body })
    }
}

fn decode<I: DeserializeOwned + Send + 'static>(payload: Payload<'_>) -> Result<Decoded, PayloadError> {
    let (input, assets) = payload.decode::<I>()?;
    Ok(Decoded { input: Box::new(input), assets })
}
