//! Real models on the real library.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[path = "../given/mod.rs"]
mod given;
#[path = "../onnx/mod.rs"]
mod onnx;

mod calls;
mod endings;
mod kept;
mod loads;
mod residency;

use std::{collections::BTreeMap, fs, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use gen_worker_core::{
    ByteSize, CallParts, CancelReason, Cancellation, Extensions, Extract, FailureKind, InjectedModel,
    JobFailure, LocalModel, ModelRef, RunId, WorkerError,
    config::{ConfigErrors, Env},
    ports::{LeaseHolder, ModelLease, ModelManager},
    testing::{self, RecordedEvents, check_model_manager},
};
use gen_worker_models_ort::{
    ModelError, OrtConfig, OrtModel, OrtModels, Provider, Tensor,
    half::{bf16, f16},
    ndarray::{Array1, Array2, arr0, array},
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use self::onnx::Onnx;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// One thread, and as much memory as there is.
fn config() -> OrtConfig {
    let env = Env::from_iter([("WORKER_ORT_THREADS", "1")]);
    OrtConfig { dylib: given::library(), ..OrtConfig::from_env(&env, &mut ConfigErrors::default()) }
}

fn models_on(providers: &[Provider]) -> Result<OrtModels, ModelError> {
    OrtModels::new(OrtConfig { providers: providers.to_vec(), ..config() })
}

/// Fails with the remedy when the library is missing.
fn models() -> OrtModels {
    models_on(&[Provider::Cpu]).unwrap_or_else(|error| panic!("{error}"))
}

fn local(path: impl AsRef<Path>) -> LocalModel {
    let path = path.as_ref();
    LocalModel {
        model: ModelRef::parse(&format!("file:{}", path.display())).unwrap(),
        root: path.parent().unwrap().to_owned(),
        files: BTreeMap::from([("net.onnx".to_owned(), path.to_owned())]),
        size_bytes: fs::metadata(path).unwrap().len(),
        pin: None,
    }
}

fn fixture(name: &str) -> LocalModel {
    local(format!("{FIXTURES}/{name}.onnx"))
}

async fn load(name: &str) -> OrtModel {
    model(&models(), &fixture(name)).await.unwrap()
}

async fn model(models: &OrtModels, local: &LocalModel) -> Result<OrtModel, ModelError> {
    models.model(local, &LeaseHolder::default()).await
}

async fn lease(models: &OrtModels, local: &LocalModel) -> Result<ModelLease, JobFailure> {
    models.lease(local, &LeaseHolder::default()).await
}

fn told(error: WorkerError) -> (FailureKind, String) {
    let failure = JobFailure::from(error);
    (failure.kind, failure.safe_message)
}

/// A model of which this is the file.
fn made(directory: &TempDir, onnx: &[u8]) -> LocalModel {
    let path = directory.path().join("net.onnx");
    fs::write(&path, onnx).unwrap();
    local(path)
}

fn names(models: &OrtModels) -> Vec<String> {
    let stem = |id: &String| Path::new(id).file_stem().unwrap().to_string_lossy().into_owned();
    models.resident().iter().map(stem).collect()
}
