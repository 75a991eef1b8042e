//! What stands around every call of a function: [`tower`](https://docs.rs/tower) layers.
//!
//! A [`Layer`] wraps a [`Service`] that takes an [`Invocation`] and answers with an [`Answer`]. The innermost is the call itself: the
//! wait for a GPU, then the function. By then the payload is decoded, files are fetched and models are leased. A layer may refuse
//! ([`LayerError`] of a [`WorkerError`]), wait, measure, or answer in the function's place. Of a function that returns a stream it
//! sees the stream begin.
//!
//! ```
//! use gen_worker_core::{WorkerError, layer::{Answer, BoxFuture, Handler, Invocation, Layer, LayerError, Service}};
//! use std::task::{Context, Poll};
//!
//! /// Refuses runs of nobody.
//! struct TenantsOnly;
//!
//! impl Layer<Handler> for TenantsOnly {
//!     type Service = Gate;
//!     fn layer(&self, inner: Handler) -> Gate {
//!         Gate(inner)
//!     }
//! }
//!
//! #[derive(Clone)]
//! struct Gate(Handler);
//!
//! impl Service<Invocation> for Gate {
//!     type Response = Answer;
//!     type Error = LayerError;
//!     type Future = BoxFuture<'static, Result<Answer, LayerError>>;
//!
//!     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LayerError>> {
//!         self.0.poll_ready(cx)
//!     }
//!
//!     fn call(&mut self, call: Invocation) -> Self::Future {
//!         match call.context().tenant_id() {
//!             Some(_) => self.0.call(call),
//!             None => Box::pin(async { Err(WorkerError::auth("this run has no tenant").into()) }),
//!         }
//!     }
//! }
//! ```

use std::{
    any::Any,
    error::Error,
    fmt,
    future::{Future, poll_fn},
    sync::Arc,
    task::{Context, Poll},
};

pub use futures_util::future::BoxFuture;
pub use tower_layer::Layer;
pub use tower_service::Service;

use crate::{
    context::ActionContext,
    failure::{FailureKind, JobFailure, WorkerError},
    function::FunctionSpec,
    output::{IntoOutput, Output},
};

/// Any error, as most of tower's own services have it.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// One call that is about to be made. Dropping it makes no call.
pub struct Invocation {
    function: Arc<FunctionSpec>,
    context: ActionContext,
    call: BoxFuture<'static, Result<Answer, JobFailure>>,
}

impl Invocation {
    /// A call of this function for this run, which `call` makes once it is polled.
    pub fn new(
        function: Arc<FunctionSpec>,
        context: ActionContext,
        call: impl Future<Output = Result<Answer, JobFailure>> + Send + 'static,
    ) -> Self {
        Self { function, context, call: Box::pin(call) }
    }

    /// The function that is called.
    pub fn function(&self) -> &FunctionSpec {
        &self.function
    }

    /// The run's context: whose it is, how much time it has, and where to say something.
    pub fn context(&self) -> &ActionContext {
        &self.context
    }
}

impl fmt::Debug for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Invocation({}, {})", self.function.name, self.context.run_id())
    }
}

/// What a function answered, or a layer in its place.
pub struct Answer {
    output: Output,
    /// What is kept until the output is there: a place on a GPU.
    held: Option<Box<dyn Any + Send>>,
}

impl Answer {
    /// An answer of one's own, of the type that the function's schema says.
    ///
    /// # Errors
    /// The value cannot be encoded.
    pub fn new(value: impl IntoOutput) -> Result<Self, LayerError> {
        Ok(Self { output: value.into_output()?, held: None })
    }

    /// What a function returned, with what is to be kept until all of it is there.
    pub fn holding(output: Output, held: Option<impl Any + Send>) -> Self {
        Self { output, held: held.map(|held| -> Box<dyn Any + Send> { Box::new(held) }) }
    }

    /// The output, and what is to be kept.
    pub fn into_parts(self) -> (Output, Option<Box<dyn Any + Send>>) {
        (self.output, self.held)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({:?})", self.output)
    }
}

/// Why a call came to nothing: a [`WorkerError`] as a standard error, which tower's own services ask for.
pub struct LayerError(JobFailure);

impl LayerError {
    /// Which kind of failure it is.
    pub fn kind(&self) -> FailureKind {
        self.0.kind
    }
}

/// What is reported. What is not a [`LayerError`] beneath is `internal`, as any error of a function is.
fn reported(error: impl Into<BoxError>) -> JobFailure {
    match error.into().downcast::<LayerError>() {
        Ok(ours) => ours.0,
        Err(other) => WorkerError::internal(other.to_string()).caused_by(Foreign(other)).into(),
    }
}

impl From<WorkerError> for LayerError {
    fn from(error: WorkerError) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.safe_message)
    }
}

impl Error for LayerError {}

/// An error in a box, which is no error itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Foreign(#[source] BoxError);

/// Everything that is further in: other layers, then the function. Clones are the same.
///
/// It is always ready: what is further in is waited for when it is called.
#[derive(Clone)]
pub struct Handler(Arc<dyn Called>);

trait Called: Send + Sync {
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Answer, JobFailure>>;
}

impl Handler {
    /// The function itself.
    pub fn innermost() -> Self {
        struct Innermost;

        impl Called for Innermost {
            fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Answer, JobFailure>> {
                call.call
            }
        }

        Self(Arc::new(Innermost))
    }

    /// This layer around it.
    #[must_use]
    pub fn within<L>(self, layer: &L) -> Self
    where
        L: Layer<Self>,
        L::Service: Service<Invocation, Response = Answer> + Clone + Send + Sync + 'static,
        <L::Service as Service<Invocation>>::Error: Into<BoxError>,
        <L::Service as Service<Invocation>>::Future: Send + 'static,
    {
        Self(Arc::new(Layered(layer.layer(self))))
    }

    /// Makes the call.
    ///
    /// # Errors
    /// Those of the layers and of the function.
    ///
    /// # Cancel safety
    /// Dropping the future drops the call, as dropping a function's own future does.
    pub async fn handle(&self, call: Invocation) -> Result<Answer, JobFailure> {
        self.0.call(call).await
    }
}

impl Service<Invocation> for Handler {
    type Response = Answer;
    type Error = LayerError;
    type Future = BoxFuture<'static, Result<Answer, LayerError>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), LayerError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        let answer = self.0.call(call);
        Box::pin(async move { answer.await.map_err(LayerError) })
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

struct Layered<S>(S);

impl<S> Called for Layered<S>
where
    S: Service<Invocation, Response = Answer> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Answer, JobFailure>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx).map_err(reported)).await?;
            service.call(call).await.map_err(reported)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handler::Function;

    /// Notes when a call passes, each way.
    #[derive(Clone)]
    struct Note(&'static str, Arc<std::sync::Mutex<Vec<String>>>);

    impl<S> Layer<S> for Note {
        type Service = Noting<S>;

        fn layer(&self, inner: S) -> Noting<S> {
            Noting(self.clone(), inner)
        }
    }

    #[derive(Clone)]
    struct Noting<S>(Note, S);

    impl<S> Service<Invocation> for Noting<S>
    where
        S: Service<Invocation, Response = Answer, Future: Send + 'static, Error: Into<BoxError>>,
    {
        type Response = Answer;
        type Error = BoxError;
        type Future = BoxFuture<'static, Result<Answer, BoxError>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            self.1.poll_ready(cx).map_err(Into::into)
        }

        fn call(&mut self, call: Invocation) -> Self::Future {
            let Note(name, notes) = self.0.clone();
            notes.lock().unwrap().push(format!("{name} {}", call.function().name));
            let answer = self.1.call(call);
            Box::pin(async move {
                let answer = answer.await.map_err(Into::into);
                notes.lock().unwrap().push(format!("{name} {}", if answer.is_ok() { "ok" } else { "err" }));
                answer
            })
        }
    }

    fn call(answer: Result<Answer, JobFailure>) -> Invocation {
        let function = Function::builder::<serde_json::Value>("f", "tests");
        let function =
            function.blocking(|_: crate::Call<serde_json::Value>| Ok::<_, WorkerError>(())).unwrap();
        let context = crate::testing::context("r");
        Invocation::new(function.spec().clone(), context, async { answer })
    }

    #[tokio::test]
    async fn a_call_passes_every_layer_both_ways() {
        let notes = Arc::default();
        let handler = Handler::innermost();
        let handler =
            handler.within(&Note("inner", Arc::clone(&notes))).within(&Note("outer", Arc::clone(&notes)));
        handler.handle(call(Answer::new(7).map_err(|error| error.0))).await.unwrap();
        assert_eq!(*notes.lock().unwrap(), ["outer f", "inner f", "inner ok", "outer ok"]);
    }

    #[tokio::test]
    async fn an_error_keeps_its_kind_through_layers_that_box_it() {
        let handler = Handler::innermost().within(&Note("one", Arc::default()));
        let failure = handler.handle(call(Err(WorkerError::validation("no").into()))).await.unwrap_err();
        assert_eq!((failure.kind, failure.safe_message.as_str()), (FailureKind::Validation, "no"));
        let failure = reported("tower says so");
        assert_eq!((failure.kind, failure.safe_message.as_str()), (FailureKind::Internal, "internal error"));
        assert!(failure.chain().contains("tower says so"), "{}", failure.chain());
    }
}
