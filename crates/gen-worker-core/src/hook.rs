//! What is done once: before a worker's first run, and after its last.

use std::{fmt, future::Future, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    extract::{Extensions, State, StateType},
    failure::WorkerError,
};

/// How a hook is called: once, with what it takes.
pub enum HookBody<I, O> {
    /// As a future.
    Async(Box<dyn FnOnce(I) -> BoxFuture<'static, O> + Send>),
    /// On a thread of its own, which it may block.
    Blocking(Box<dyn FnOnce(I) -> O + Send>),
}

/// Puts what a set-up made where functions take it from.
pub type Made = Box<dyn FnOnce(&mut Extensions) + Send>;

/// What a worker does before its first run. What it returns is the [`State`] that functions take; `()` is none.
///
/// ```
/// use gen_worker_core::{SetUp, WorkerError};
///
/// struct Labels(Vec<String>);
///
/// let labels = SetUp::blocking("labels", || {
///     let text = std::fs::read_to_string("labels.txt")?;
///     Ok::<_, WorkerError>(Labels(text.lines().map(str::to_owned).collect()))
/// });
/// assert_eq!(labels.name(), "labels");
/// ```
pub struct SetUp {
    name: &'static str,
    makes: StateType,
    body: HookBody<(), Result<Made, WorkerError>>,
}

impl SetUp {
    /// One that runs as a future.
    pub fn asynchronous<T, E, Fut>(name: &'static str, body: impl FnOnce() -> Fut + Send + 'static) -> Self
    where
        T: Send + Sync + 'static,
        E: Into<WorkerError>,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let body = HookBody::Async(Box::new(move |()| {
            let made = body();
            Box::pin(async move { made.await.map(made_of).map_err(Into::into) })
        }));
        Self { name, makes: StateType::of::<T>(), body }
    }

    /// One that blocks the thread it is called on, which is its own.
    pub fn blocking<T, E>(name: &'static str, body: impl FnOnce() -> Result<T, E> + Send + 'static) -> Self
    where
        T: Send + Sync + 'static,
        E: Into<WorkerError>,
    {
        let body = HookBody::Blocking(Box::new(move |()| body().map(made_of).map_err(Into::into)));
        Self { name, makes: StateType::of::<T>(), body }
    }

    /// What the log and an error call it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it makes; `None`: nothing.
    pub fn makes(&self) -> Option<StateType> {
        (!self.makes.is_nothing()).then_some(self.makes)
    }

    /// How it is called.
    pub fn into_body(self) -> HookBody<(), Result<Made, WorkerError>> {
        self.body
    }
}

impl fmt::Debug for SetUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetUp({})", self.name)
    }
}

fn made_of<T: Send + Sync + 'static>(value: T) -> Made {
    Box::new(move |state| {
        if !StateType::of::<T>().is_nothing() {
            state.insert(value);
        }
    })
}

/// What a worker does after its last run. It takes what set-ups made, and is not called where that was not made.
///
/// ```
/// use gen_worker_core::{State, TearDown, WorkerError};
///
/// struct Journal;
///
/// let close = TearDown::asynchronous("close the journal", |(_journal,): (State<Journal>,)| async {
///     Ok::<_, WorkerError>(())
/// });
/// assert_eq!(close.takes().len(), 1);
/// ```
pub struct TearDown {
    name: &'static str,
    takes: Vec<StateType>,
    body: HookBody<Arc<Extensions>, Result<(), WorkerError>>,
}

impl TearDown {
    /// One that runs as a future.
    pub fn asynchronous<S, E, Fut>(name: &'static str, body: impl FnOnce(S) -> Fut + Send + 'static) -> Self
    where
        S: TakesState,
        E: Into<WorkerError>,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
    {
        let body = HookBody::Async(Box::new(move |state: Arc<Extensions>| {
            let done = S::take(&state).map(body);
            Box::pin(async move {
                match done {
                    Some(done) => done.await.map_err(Into::into),
                    None => Ok(()),
                }
            })
        }));
        Self { name, takes: S::types(), body }
    }

    /// One that blocks the thread it is called on, which is its own.
    pub fn blocking<S, E>(name: &'static str, body: impl FnOnce(S) -> Result<(), E> + Send + 'static) -> Self
    where
        S: TakesState,
        E: Into<WorkerError>,
    {
        let body = HookBody::Blocking(Box::new(move |state: Arc<Extensions>| match S::take(&state) {
            Some(taken) => body(taken).map_err(Into::into),
            None => Ok(()),
        }));
        Self { name, takes: S::types(), body }
    }

    /// What the log calls it.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The values that must have been made for it to be called.
    pub fn takes(&self) -> &[StateType] {
        &self.takes
    }

    /// How it is called.
    pub fn into_body(self) -> HookBody<Arc<Extensions>, Result<(), WorkerError>> {
        self.body
    }
}

impl fmt::Debug for TearDown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TearDown({})", self.name)
    }
}

/// What a [`TearDown`] takes: a tuple of up to four [`State`]s, `()` for none.
#[diagnostic::on_unimplemented(
    message = "a tear-down cannot take `{Self}`",
    note = "it takes up to four parameters `State<T>`, each of which a `#[worker_setup]` function made"
)]
pub trait TakesState: Sized + Send + 'static {
    /// The types of the values.
    fn types() -> Vec<StateType>;

    /// The values; `None`: one is not there.
    fn take(state: &Extensions) -> Option<Self>;
}

macro_rules! tuples {
    ($($($name:ident)*;)*) => {$(
        impl<$($name: Send + Sync + 'static),*> TakesState for ($(State<$name>,)*) {
            fn types() -> Vec<StateType> {
                vec![$(StateType::of::<$name>()),*]
            }

            fn take(_state: &Extensions) -> Option<Self> {
                Some(($(State(_state.get::<$name>()?),)*))
            }
        }
    )*};
}

tuples! { ; A; A B; A B C; A B C D; }

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn what_was_made_is_taken_and_nothing_is_no_state() {
        let mut state = Extensions::default();
        for set_up in [
            SetUp::blocking("n", || Ok::<_, WorkerError>(7_u8)),
            SetUp::blocking("()", || Ok::<_, WorkerError>(())),
        ] {
            let HookBody::Blocking(body) = set_up.into_body() else { panic!("it blocks") };
            body(()).unwrap()(&mut state);
        }
        assert_eq!(<(State<u8>,)>::take(&state).map(|(n,)| *n), Some(7));
        assert!(state.get::<()>().is_none() && <(State<u8>, State<u16>)>::take(&state).is_none());
        assert!(SetUp::blocking("()", || Ok::<_, WorkerError>(())).makes().is_none());
    }

    #[test]
    fn a_tear_down_without_its_state_is_not_called() {
        let close = TearDown::asynchronous("c", |(_,): (State<u8>,)| async {
            panic!("it is called") as Result<(), WorkerError>
        });
        assert_eq!(close.takes(), [StateType::of::<u8>()]);
        let HookBody::Async(body) = close.into_body() else { panic!("it is async") };
        assert!(body(Arc::default()).now_or_never().expect("nothing to wait for").is_ok());
    }
}
