//! Real models on the real library.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use gen_worker_core::{
    Extensions, Extract, FailureKind, InjectedModel, JobFailure, LocalModel, ModelRef, WorkerError,
    ports::{ModelLease, ModelProvider},
};
use gen_worker_models_ort::{
    ModelError, OrtConfig, OrtModel, OrtModels, Provider, Tensor,
    ndarray::{Array1, arr0, array},
};
use tokio::task::JoinSet;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// Fails with the remedy when the library is missing.
fn models_on(providers: &[Provider]) -> Result<OrtModels, ModelError> {
    let config = OrtConfig { dylib: None, intra_threads: 1, providers: providers.to_vec() };
    OrtModels::new(config)
}

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
    models().load(&fixture(name)).await.unwrap()
}

fn told(error: WorkerError) -> (FailureKind, String) {
    let failure = JobFailure::from(error);
    (failure.kind, failure.safe_message)
}

#[tokio::test]
async fn computes() {
    let model = load("double_plus_one").await;
    assert_eq!(model.inputs()[0].to_string(), "x f32[1, N]");
    assert_eq!(model.outputs()[0].shape, [Some(1), None]);
    let mut outputs = model.run([("x", array![[1.0_f32, 2.0, -3.5]])]).await.unwrap();
    assert_eq!(outputs.take::<f32>("y").unwrap(), array![[3.0, 5.0, -6.0]].into_dyn());
    let again = outputs.take_first::<f32>().unwrap_err();
    assert_eq!(told(again).1, "the model gives nothing; the call takes an output f32");
}

#[test]
fn computes_for_blocking_functions() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let model = runtime.block_on(load("double_plus_one"));
    let mut outputs = model.run_blocking([("x", array![[4.0_f32]])]).unwrap();
    assert_eq!(outputs.take_first::<f32>().unwrap(), array![[9.0]].into_dyn());
}

#[tokio::test]
async fn every_type_comes_back_as_it_went_in() {
    let given: [(&str, Tensor); 6] = [
        ("f32", array![0.5_f32].into()),
        ("f64", array![-0.25_f64, 2.0].into()),
        ("i64", array![i64::MIN].into()),
        ("i32", array![7_i32, 8, 9].into()),
        ("u8", Array1::<u8>::from_iter(0..=255).into()),
        ("bool", array![true, false].into()),
    ];
    let outputs = load("mirror").await.run(given.clone()).await.unwrap();
    let expected = given.map(|(name, tensor)| (format!("{name}_out"), tensor));
    assert_eq!(outputs.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn inputs_that_do_not_fit_are_refused_by_name() {
    let model = load("double_plus_one").await;
    let tensor: Tensor = array![[1.0_f32]].into();
    let wrong: [(Vec<(&str, Tensor)>, &str); 5] = [
        (vec![("z", tensor.clone())], "z f32[1, 1]"),
        (vec![], "nothing"),
        (vec![("x", tensor.clone()), ("z", tensor)], "x f32[1, 1], z f32[1, 1]"),
        (vec![("x", array![[1_i64]].into())], "x i64[1, 1]"),
        (vec![("x", array![[1.0_f32], [2.0]].into())], "x f32[2, 1]"),
    ];
    for (inputs, given) in wrong {
        let expected = format!("the model takes x f32[1, N]; the call gives {given}");
        assert_eq!(told(model.run(inputs).await.unwrap_err()), (FailureKind::Validation, expected));
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_the_whole_one_loads_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.onnx");
    let whole = fs::read(format!("{FIXTURES}/double_plus_one.onnx")).unwrap();
    let models = models();
    for damaged in [&whole[..60], b"not a model", b""] {
        fs::write(&path, damaged).unwrap();
        let failure = models.lease(&local(&path)).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Validation, "{failure:?}");
        assert!(models.resident().is_empty());
    }
    fs::write(&path, &whole).unwrap();
    models.lease(&local(&path)).await.unwrap();
    assert_eq!(models.resident(), [local(&path).model.as_str()]);
}

#[tokio::test]
async fn two_leases_share_one_load() {
    let models = models();
    let local = fixture("double_plus_one");
    let (one, two) = tokio::join!(models.lease(&local), models.lease(&local));
    let inputs = |lease: ModelLease| {
        let injected = InjectedModel { local: local.clone(), lease: Some(lease) };
        let model = OrtModel::extract(Some(&injected), &Extensions::default()).unwrap();
        model.inputs().as_ptr()
    };
    assert_eq!(inputs(one.unwrap()), inputs(two.unwrap()));
    let files_only = InjectedModel { local: local.clone(), lease: None };
    assert!(OrtModel::extract(Some(&files_only), &Extensions::default()).is_none());
}

#[tokio::test]
async fn more_callers_than_the_queue_holds_are_all_answered() {
    let model = load("double_plus_one").await;
    let mut callers = JoinSet::new();
    for caller in 0..50_u8 {
        let model = model.clone();
        callers.spawn(async move {
            let given = f32::from(caller);
            let mut outputs = model.run([("x", array![[given]])]).await.unwrap();
            assert_eq!(outputs.take::<f32>("y").unwrap()[[0, 0]], 2.0 * given + 1.0);
        });
    }
    assert_eq!(callers.join_all().await.len(), 50);
}

#[tokio::test]
async fn an_unloaded_model_works_on_for_those_who_hold_it() {
    let models = models();
    let local = fixture("double_plus_one");
    let held = models.load(&local).await.unwrap();
    models.unload(&local.model).await.unwrap();
    models.unload(&local.model).await.unwrap();
    assert!(models.resident().is_empty());
    held.run([("x", array![[1.0_f32]])]).await.unwrap();
    let loaded = models.load(&local).await.unwrap();
    assert_ne!(held.inputs().as_ptr(), loaded.inputs().as_ptr());
}

#[tokio::test]
async fn a_model_from_other_files_takes_the_place_of_the_old() {
    let models = models();
    let old = fixture("double_plus_one");
    let directory = tempfile::tempdir().unwrap();
    let moved = LocalModel { root: directory.path().to_owned(), ..old.clone() };
    let before = models.load(&old).await.unwrap();
    let after = models.load(&moved).await.unwrap();
    assert_ne!(before.inputs().as_ptr(), after.inputs().as_ptr());
    assert_eq!(models.resident().len(), 1);
}

fn counting(rounds: i64) -> [(&'static str, Tensor); 2] {
    [("rounds", arr0(rounds).into()), ("x", array![0_i64].into())]
}

#[tokio::test]
async fn a_dropped_call_ends_its_inference() {
    let model = load("count_up").await;
    // Hundreds of years. The time limit only lets it begin; ended or not, the call is dropped then.
    let endless = model.run(counting(i64::MAX));
    assert!(tokio::time::timeout(Duration::from_millis(300), endless).await.is_err());
    let next = model.run(counting(5));
    let mut outputs =
        tokio::time::timeout(Duration::from_secs(60), next).await.expect("the thread is free").unwrap();
    assert_eq!(outputs.take::<i64>("total").unwrap(), array![5].into_dyn());
}

#[tokio::test]
async fn too_large_an_output_is_out_of_memory() {
    let model = load("zeros").await;
    let error = model.run([("shape", array![1_i64 << 60])]).await.unwrap_err();
    assert_eq!(told(error), (FailureKind::Resource, "out of memory".into()));
    model.run([("shape", array![3_i64])]).await.unwrap();
}

#[test]
fn the_first_provider_that_works_is_taken() {
    assert!(models_on(&[Provider::Cuda, Provider::Cpu]).is_ok());
    let error = models_on(&[Provider::Cuda]).err().expect("a library for processors");
    assert_eq!(error.to_string(), "ONNX Runtime cannot use cuda on this machine");
}

#[test]
fn says_the_version_of_the_library() {
    let version = models().engine_version().unwrap();
    assert!(version.starts_with("1."), "{version}");
}
