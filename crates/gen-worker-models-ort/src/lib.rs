//! Models on ONNX Runtime.
//!
//! [`OrtModels`] is the port through which the runtime leases models: it loads each once and keeps it in memory. Functions
//! take an [`OrtModel`] and call [`run`](OrtModel::run) on it with named [`Tensor`]s. Every model in memory has sessions, each of
//! which runs one call after the other, on the caller's thread if that may block or the call is short, else on one of its own; dropping a call ends its
//! inference. An [`OrtBinding`] keeps tensors where the model runs from one call to the next.
//!
//! ```
//! use gen_worker_models_ort::{OrtModel, ndarray::array};
//!
//! async fn double_plus_one(model: &OrtModel) -> Result<Vec<f32>, gen_worker_core::WorkerError> {
//!     let mut outputs = model.run([("x", array![[1.0_f32, 2.0]])]).await?;
//!     Ok(outputs.take::<f32>("y")?.into_iter().collect())
//! }
//! ```

mod binding;
mod block;
mod budget;
mod config;
mod device;
mod error;
mod files;
mod graph;
mod kept;
mod library;
mod manager;
mod model;
mod native;
mod outputs;
mod pace;
mod pool;
mod residency;
mod session;
mod survey;
mod tensor;
mod warmup;

pub use half;
pub use ndarray;

pub use crate::{
    binding::OrtBinding,
    config::{OrtConfig, Provider, VARS},
    error::ModelError,
    graph::TensorSpec,
    manager::OrtModels,
    model::{OrtModel, OrtSession},
    outputs::Outputs,
    survey::{Survey, survey},
    tensor::{Element, ElementType, Tensor},
};
