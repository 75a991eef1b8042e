//! What was understood of a worker function or a realtime handler.

use syn::{ItemFn, Type};

/// Which attribute stands on the item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// `#[worker_function]`
    Function,
    /// `#[worker_websocket]`
    Websocket,
}

impl Kind {
    /// The attribute as it is written.
    pub(crate) fn attribute(self) -> &'static str {
        match self {
            Self::Function => "#[worker_function]",
            Self::Websocket => "#[worker_websocket]",
        }
    }
}

/// A worker function: the item as it is written out again, and what its parts mean.
#[derive(Debug)]
pub(crate) struct WorkerFunction {
    pub(crate) kind: Kind,
    /// The function, without the attributes that belong to this macro.
    pub(crate) item: ItemFn,
    /// Its payload's type; of a realtime handler, its socket's.
    pub(crate) payload: Type,
    /// What it takes after the payload.
    pub(crate) extractors: Vec<Extractor>,
    /// What it returns.
    pub(crate) returns: Returns,
}

/// A parameter after the payload.
#[derive(Debug)]
pub(crate) struct Extractor {
    /// Its name, or its pattern's text.
    pub(crate) name: String,
    /// Its type.
    pub(crate) ty: Type,
    /// Where its model's reference comes from; `None`: it takes no model.
    pub(crate) binding: Option<Binding>,
}

/// Where a model's reference comes from.
#[derive(Debug, PartialEq)]
pub(crate) enum Binding {
    /// This field of the payload.
    Payload(String),
    /// The deployment's configuration, under this key.
    Deployment(String),
}

/// The shape of a return type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Returns {
    /// `Result<T, E>`
    Value,
    /// `impl Stream<Item = Result<T, WorkerError>>`
    Stream,
    /// `Result<impl Stream<…>, E>`
    ResultOfStream,
}
