//! Real models on the real library.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod onnx;

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
    OrtConfig { dylib: None, ..OrtConfig::from_env(&env, &mut ConfigErrors::default()) }
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let model = runtime.block_on(load("double_plus_one"));
    let mut outputs = model.run_blocking([("x", array![[4.0_f32]])]).unwrap();
    assert_eq!(outputs.take_first::<f32>().unwrap(), array![[9.0]].into_dyn());
}

/// A model of which this is the file.
fn made(directory: &TempDir, onnx: &[u8]) -> LocalModel {
    let path = directory.path().join("net.onnx");
    fs::write(&path, onnx).unwrap();
    local(path)
}

#[tokio::test]
async fn every_type_comes_back_as_it_went_in() {
    // The numbers of the types, as `onnx.proto3` has them.
    let given: [(&str, i64, Tensor); 14] = [
        ("f32", 1, array![0.5_f32].into()),
        ("f64", 11, array![-0.25_f64, 2.0].into()),
        ("f16", 10, array![f16::from_f32(1.5), f16::MIN].into()),
        ("bf16", 16, array![bf16::from_f32(-3.0), bf16::MAX].into()),
        ("i64", 7, array![i64::MIN].into()),
        ("i32", 6, array![7_i32, 8, 9].into()),
        ("i16", 5, array![i16::MIN, 1].into()),
        ("i8", 3, array![i8::MIN, 1].into()),
        ("u64", 13, array![u64::MAX].into()),
        ("u32", 12, array![u32::MAX, 0].into()),
        ("u16", 4, array![u16::MAX].into()),
        ("u8", 2, Array1::<u8>::from_iter(0..=255).into()),
        ("bool", 9, array![true, false].into()),
        ("String", 8, array!["é".to_owned(), String::new()].into()),
    ];
    let mirror = given.iter().fold(Onnx::new(), |onnx, (name, element, _)| {
        let mirrored = format!("{name}_out");
        onnx.node("", "Identity", &[name], &[&mirrored]).input(name, *element, &[-1]).output(
            &mirrored,
            *element,
            &[-1],
        )
    });
    let (directory, models) = (tempfile::tempdir().unwrap(), models());
    let model = model(&models, &made(&directory, &mirror.write())).await.unwrap();
    for (spec, (name, _, tensor)) in model.inputs().iter().zip(&given) {
        assert_eq!(spec.to_string(), format!("{name} {name}[N]"));
        assert_eq!(spec.element, Some(tensor.element()));
    }
    let inputs = given.clone().map(|(name, _, tensor)| (name, tensor));
    let outputs = model.run(inputs).await.unwrap();
    let expected = given.map(|(name, _, tensor)| (format!("{name}_out"), tensor));
    assert_eq!(outputs.into_iter().collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_cannot_be_loaded_says_why_and_leaves_nothing() {
    let (directory, models) = (tempfile::tempdir().unwrap(), models());
    let plain = Onnx::new().input("x", onnx::F32, &[1]).output("y", onnx::F32, &[1]);
    let whole = plain.clone().node("", "Relu", &["x"], &["y"]);
    let strange = plain.clone().opsets(&[("", 13), ("acme", 1)]);
    let damaged = "the model cannot be loaded: its file is damaged or no ONNX model";
    let unknown = "the model cannot be loaded: it has an operator that this worker does not know";
    let beside =
        plain.clone().weights_beside("w", &[1], "short.data", 2).node("", "Add", &["x", "w"], &["y"]);
    fs::write(directory.path().join("short.data"), [0_u8; 4]).unwrap();
    for (file, expected) in [
        (whole.write()[..40].to_vec(), damaged),
        (b"PK not a model".to_vec(), damaged),
        (plain.write(), damaged),
        (beside.write(), damaged),
        (strange.node("acme", "Frobnicate", &["x"], &["y"]).write(), unknown),
        (plain.clone().node("", "NoSuchOperator", &["x"], &["y"]).write(), unknown),
        (
            whole.clone().opsets(&[("", 9999)]).write(),
            "the model cannot be loaded: it was made for another version of ONNX than this worker runs",
        ),
    ] {
        let failure = models.load(&made(&directory, &file)).await.unwrap_err();
        assert_eq!(
            (failure.kind, &*failure.safe_message),
            (FailureKind::Validation, expected),
            "{failure:?}"
        );
        let stats = models.stats();
        assert_eq!((stats.used_bytes, stats.resident, stats.leased), (0, 0, 0));
    }
    models.load(&made(&directory, &whole.write())).await.unwrap();
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
async fn two_leases_share_one_load() {
    let models = models();
    let local = fixture("double_plus_one");
    let (one, two) = tokio::join!(lease(&models, &local), lease(&models, &local));
    let (context, state) = (testing::context("r"), Extensions::default());
    let model = |lease: Option<ModelLease>| {
        let injected = InjectedModel { local: local.clone(), lease };
        OrtModel::extract(&CallParts::new("model", &context, Some(&injected), &state))
    };
    let inputs = |lease: ModelLease| model(Some(lease)).unwrap().inputs().as_ptr();
    assert_eq!(inputs(one.unwrap()), inputs(two.unwrap()));
    assert!(model(None).is_err());
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
async fn a_model_in_use_is_not_unloaded_and_the_runs_are_named() {
    let models = models();
    let local = fixture("double_plus_one");
    let holder =
        |run: &str| LeaseHolder { run_id: Some(RunId::parse(run).unwrap()), ..LeaseHolder::default() };
    let one = models.model(&local, &holder("run-1")).await.unwrap();
    let two = models.model(&local, &holder("run-2")).await.unwrap();
    let refused = models.unload(&local.model).await.unwrap_err();
    assert_eq!(
        (refused.kind, &*refused.safe_message),
        (FailureKind::Retryable, "the model is in use by run-1, run-2")
    );
    drop((one, two));
    models.unload(&local.model).await.unwrap();
    models.unload(&local.model).await.unwrap();
    assert!(models.resident().is_empty());
    assert_eq!((models.stats().used_bytes, models.stats().resident), (0, 0));
}

#[tokio::test]
async fn who_leases_what_is_listed() {
    let (models, local) = (models(), fixture("double_plus_one"));
    let holder = LeaseHolder { run_id: Some(RunId::parse("r1").unwrap()), ..LeaseHolder::default() };
    let lease = models.lease(&local, &holder).await.unwrap();
    let [leased] = &models.leases()[..] else { panic!("one model is leased") };
    assert_eq!(
        (leased.model.as_str(), leased.held_by.join(","), leased.waiting.len()),
        (local.model.known_as(), "r1".to_owned(), 0)
    );
    assert!(leased.bytes > 0);
    drop(lease);
    assert!(models.leases().is_empty());
}

#[tokio::test]
async fn a_model_from_other_files_takes_the_place_of_the_old() {
    let models = models();
    let old = fixture("double_plus_one");
    let directory = tempfile::tempdir().unwrap();
    let moved = LocalModel { root: directory.path().to_owned(), ..old.clone() };
    let before = model(&models, &old).await.unwrap();
    let after = model(&models, &moved).await.unwrap();
    assert_ne!(before.inputs().as_ptr(), after.inputs().as_ptr());
    assert_eq!(models.resident().len(), 1);
}

/// A copy of a fixture that is said to be so large, which is what it is charged then: its own few kilobytes are less.
fn of_size(directory: &Path, name: &str, gib: u64) -> LocalModel {
    let path = directory.join(format!("{name}.onnx"));
    fs::copy(format!("{FIXTURES}/double_plus_one.onnx"), &path).unwrap();
    LocalModel { size_bytes: gib << 30, root: directory.join(name), ..local(path) }
}

fn with_budget(gib: u64) -> OrtModels {
    let max_ram = Some(ByteSize::gib(gib));
    OrtModels::new(OrtConfig { max_ram, ..config() }).unwrap_or_else(|error| panic!("{error}"))
}

fn names(models: &OrtModels) -> Vec<String> {
    let stem = |id: &String| Path::new(id).file_stem().unwrap().to_string_lossy().into_owned();
    models.resident().iter().map(stem).collect()
}

#[tokio::test]
async fn is_what_is_asked_of_every_manager() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.onnx");
    fs::write(&path, "no model").unwrap();
    check_model_manager(&models(), &fixture("double_plus_one"), &local(&path)).await;
}

#[tokio::test]
async fn more_models_than_fit_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    // Each takes some more than it says: the library's own memory is measured too.
    let models = with_budget(11);
    let [a, b, c] = ["a", "b", "c"].map(|name| of_size(directory.path(), name, 5));
    drop(model(&models, &a).await.unwrap());
    let held = model(&models, &b).await.unwrap();
    drop(model(&models, &a).await.unwrap());
    assert_eq!((names(&models), models.stats().hits), (vec!["b".into(), "a".into()], 1));
    drop(model(&models, &c).await.unwrap());
    assert_eq!(names(&models), ["b", "c"], "b is older, and leased");
    held.run([("x", array![[1.0_f32]])]).await.unwrap();
    let stats = models.stats();
    assert_eq!((stats.loads, stats.evictions, stats.leased), (3, 1, 1));
    assert!(stats.used_bytes >= 10 << 30 && stats.used_bytes <= stats.budget_bytes, "{stats:?}");
    let large = of_size(directory.path(), "large", 12);
    let error = JobFailure::from(model(&models, &large).await.unwrap_err());
    assert_eq!(error.kind, FailureKind::Resource);
    assert_eq!(
        error.safe_message,
        "the model takes 12.0 GiB of memory; this worker has 11.0 GiB of memory for models: raise WORKER_MAX_RAM_GB"
    );
}

#[tokio::test]
async fn what_does_not_fit_now_waits_for_leases_and_not_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let models = with_budget(9);
    let [a, b] = ["a", "b"].map(|name| of_size(directory.path(), name, 5));
    let held = model(&models, &a).await.unwrap();
    let (waited, ()) = tokio::join!(model(&models, &b), async {
        tokio::task::yield_now().await;
        assert_eq!(names(&models), ["a"]);
        drop(held);
    });
    let held = waited.unwrap();
    assert_eq!(names(&models), ["b"]);
    let impatient =
        OrtConfig { wait: Duration::from_millis(50), max_ram: Some(ByteSize::gib(9)), ..config() };
    let models = OrtModels::new(impatient).unwrap();
    let _a = model(&models, &a).await.unwrap();
    let error = JobFailure::from(model(&models, &b).await.unwrap_err());
    assert_eq!(
        (error.kind, &*error.safe_message),
        (
            FailureKind::Retryable,
            "no room for the model in 50ms: others are in use; WORKER_MODEL_WAIT_SECONDS says how long to wait"
        )
    );
    assert_eq!(models.stats().leased, 1);
    drop(held);
}

#[tokio::test]
async fn those_who_go_away_leave_nothing_behind() {
    let models = models();
    let local = fixture("double_plus_one");
    for _ in 0..20 {
        let mut asking = Box::pin(model(&models, &local));
        assert!(futures_util::poll!(&mut asking).is_pending() || models.stats().resident == 1);
        drop(asking);
        assert_eq!(models.stats().leased, 0);
        models.unload(&local.model).await.unwrap();
        assert_eq!((models.stats().resident, models.stats().used_bytes), (0, 0));
    }
}

#[tokio::test]
async fn what_becomes_of_a_model_is_reported() {
    let (models, events) = (models(), Arc::new(RecordedEvents::default()));
    models.report_to(events.clone());
    let local = fixture("double_plus_one");
    models.load(&local).await.unwrap();
    models.unload(&local.model).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.onnx");
    fs::write(&path, "no model").unwrap();
    models.load(&self::local(&path)).await.unwrap_err();
    let told = events.payloads("model.state");
    let states: Vec<_> = told.iter().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["loading", "resident", "evicting", "on_disk", "loading", "failed"]);
    assert_eq!(told[0]["model_id"], local.model.known_as());
    assert!(
        told[1]["bytes"].as_u64() >= Some(local.size_bytes) && told[1]["bytes"] == told[2]["bytes"],
        "{told:?}"
    );
}

#[tokio::test]
async fn a_run_that_is_told_to_stop_ends_its_inference() {
    let (models, cancellation) = (models(), Cancellation::new());
    let holder = LeaseHolder { run_id: None, cancellation: cancellation.clone() };
    let model = models.model(&fixture("count_up"), &holder).await.unwrap();
    let blocking = model.clone();
    let endless = tokio::task::spawn_blocking(move || blocking.run_blocking(counting(i64::MAX)));
    // The call has begun, or begins and ends at once; either way it would not end by itself.
    cancellation.cancel(CancelReason::Deadline);
    let told = told(endless.await.unwrap().unwrap_err());
    assert_eq!(told.0, FailureKind::Canceled);
    drop(model);
    // The thread is joined: were the inference going on, this would never return.
    models.unload(&fixture("count_up").model).await.unwrap();
}

#[tokio::test]
async fn sessions_of_one_graph_run_side_by_side() {
    let models = OrtModels::new(OrtConfig { sessions: NonZeroUsize::new(2).unwrap(), ..config() }).unwrap();
    let model = model(&models, &fixture("count_up")).await.unwrap();
    let endless = model.run(counting(i64::MAX));
    tokio::pin!(endless);
    assert!(futures_util::poll!(&mut endless).is_pending());
    let mut outputs = model.run(counting(5)).await.unwrap();
    assert_eq!(outputs.take::<i64>("total").unwrap(), array![5].into_dyn());
    assert!(futures_util::poll!(&mut endless).is_pending());
}

#[tokio::test]
async fn a_model_of_several_graphs_has_a_session_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = BTreeMap::new();
    for (name, fixture) in [("unet", "double_plus_one"), ("vae", "count_up")] {
        fs::create_dir(directory.path().join(name)).unwrap();
        let path = directory.path().join(name).join("model.onnx");
        fs::copy(format!("{FIXTURES}/{fixture}.onnx"), &path).unwrap();
        files.insert(format!("{name}/model.onnx"), path);
    }
    let local = LocalModel { files, ..fixture("double_plus_one") };
    let model = model(&models(), &local).await.unwrap();
    assert_eq!(model.sessions().collect::<Vec<_>>(), ["unet", "vae"]);
    let unet = model.session("unet").unwrap();
    assert_eq!((unet.name(), unet.inputs()[0].to_string()), ("unet", "x f32[1, N]".into()));
    let inputs = [("x", array![[4.0_f32]])];
    assert_eq!(unet.run(inputs.clone()).await.unwrap().take::<f32>("y").unwrap(), array![[9.0]].into_dyn());
    let expected = |asked| format!("the model has the sessions unet, vae; the call names {asked}");
    assert_eq!(told(model.run(inputs).await.unwrap_err()), (FailureKind::Validation, expected("none")));
    assert_eq!(told(model.session("clip").unwrap_err()), (FailureKind::Validation, expected("clip")));
    assert!(model.inputs().is_empty() && model.outputs().is_empty());
}

#[tokio::test]
async fn out_of_memory_evicts_what_is_idle_and_the_worker_lives_on() {
    let models = models();
    models.load(&fixture("double_plus_one")).await.unwrap();
    let zeros = model(&models, &fixture("zeros")).await.unwrap();
    let error = zeros.run([("shape", array![1_i64 << 60])]).await.unwrap_err();
    assert_eq!(told(error), (FailureKind::Resource, "out of memory".into()));
    assert_eq!(names(&models), ["zeros"]);
    zeros.run([("shape", array![3_i64])]).await.unwrap();
}

#[tokio::test]
async fn a_cancel_ends_the_inference_of_a_thread_that_waits_for_it() {
    let (models, cancellation) = (models(), Cancellation::new());
    let holder = LeaseHolder { run_id: None, cancellation: cancellation.clone() };
    let local = fixture("count_up");
    let counter = models.model(&local, &holder).await.unwrap();
    let other = model(&models, &local).await.unwrap();
    // One computes and one waits for the session; neither would end.
    let calls = [counter.clone(), counter]
        .map(|counter| std::thread::spawn(move || counter.run_blocking(counting(i64::MAX)).unwrap_err()));
    let mut next = Box::pin(other.run(counting(5)));
    assert!(futures_util::poll!(&mut next).is_pending());
    assert!(cancellation.cancel(CancelReason::User));
    for call in calls {
        assert_eq!(told(call.join().unwrap()).0, FailureKind::Canceled);
    }
    assert_eq!(next.await.unwrap().take::<i64>("total").unwrap(), array![5].into_dyn());
}

#[test]
fn out_of_memory_evicts_on_a_thread_without_a_runtime_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let models = models();
    let zeros = runtime.block_on(async {
        models.load(&fixture("double_plus_one")).await.unwrap();
        model(&models, &fixture("zeros")).await.unwrap()
    });
    let call = move || zeros.run_blocking([("shape", array![1_i64 << 60])]).unwrap_err();
    let error = std::thread::spawn(call).join().expect("it does not panic");
    assert_eq!(told(error), (FailureKind::Resource, "out of memory".into()));
    assert_eq!(models.stats().resident, 1, "what was idle is gone");
}

#[tokio::test]
async fn a_model_in_memory_does_not_keep_its_files() {
    let (directory, models) = (tempfile::tempdir().unwrap(), with_host_tier());
    let files: Arc<dyn std::any::Any + Send + Sync> = Arc::new(());
    let held = Arc::downgrade(&files);
    let a = matrix(&directory, "a", 0.0);
    let sum = column(&models, &LocalModel { pin: Some(files), ..a.clone() }).await;
    assert!(held.upgrade().is_none(), "nobody leases it");
    assert_eq!(names(&models), ["a"]);
    let bytes = fs::read(&a.files["net.onnx"]).unwrap();
    let empty = || {
        fs::remove_dir_all(directory.path()).unwrap();
        fs::create_dir(directory.path()).unwrap();
    };
    empty();
    assert_eq!((column(&models, &a).await, models.stats().hits), (sum, 1));
    // Evicted, it comes back from its files, which are fetched for whoever asks.
    let b = matrix(&directory, "b", 1.0);
    column(&models, &b).await;
    empty();
    fs::write(&a.files["net.onnx"], bytes).unwrap();
    assert_eq!((column(&models, &a).await, names(&models)), (sum, vec!["a".to_owned()]));
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_lets_go_of_the_files() {
    let (models, directory) = (models(), tempfile::tempdir().unwrap());
    for _ in 0..20 {
        let files: Arc<dyn std::any::Any + Send + Sync> = Arc::new(());
        let held = Arc::downgrade(&files);
        let local = LocalModel { pin: Some(files), ..made(&directory, b"no graph") };
        let mut asking = Box::pin(model(&models, &local));
        let _ = futures_util::poll!(&mut asking);
        drop(asking);
        drop(local);
        let gone = async {
            while held.upgrade().is_some() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the load has failed");
    }
}

#[tokio::test]
async fn an_eviction_is_counted_once_and_no_budget_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let models = with_host_tier();
    let (a, b) = (matrix(&directory, "a", 0.0), matrix(&directory, "b", 1.0));
    column(&models, &a).await;
    column(&models, &b).await;
    models.unload(&a.model).await.unwrap();
    assert_eq!(models.stats().evictions, 1, "what was warm had been taken out before");
    let unlimited = OrtConfig { max_ram: Some(ByteSize(u64::MAX)), ..config() };
    assert_eq!(OrtModels::new(unlimited).unwrap().stats().budget_bytes, 0);
}

/// A matrix of 64 x 64 that a model multiplies with, said to be of 5 GiB.
fn matrix(directory: &TempDir, name: &str, first: f32) -> LocalModel {
    let numbers: Vec<f32> = (0..64 * 64).map(|at| first + at as f32).collect();
    let onnx = Onnx::new()
        .input("x", onnx::F32, &[1, 64])
        .output("y", onnx::F32, &[1, 64])
        .weights("w", &[64, 64], &numbers)
        .node("", "MatMul", &["x", "w"], &["y"]);
    let path = directory.path().join(format!("{name}.onnx"));
    fs::write(&path, onnx.write()).unwrap();
    LocalModel { size_bytes: 5 << 30, ..local(path) }
}

/// The first column's sum.
async fn column(models: &OrtModels, local: &LocalModel) -> f32 {
    let model = model(models, local).await.unwrap();
    let mut outputs = model.run([("x", Array2::from_elem((1, 64), 1.0_f32))]).await.unwrap();
    outputs.take::<f32>("y").unwrap()[[0, 0]]
}

fn with_host_tier() -> OrtModels {
    let config = OrtConfig { host_tier: true, max_ram: Some(ByteSize::gib(9)), ..config() };
    OrtModels::new(config).unwrap_or_else(|error| panic!("{error}"))
}

#[tokio::test]
async fn a_model_comes_back_from_its_kept_weights() {
    let directory = tempfile::tempdir().unwrap();
    let (models, events) = (with_host_tier(), Arc::new(RecordedEvents::default()));
    models.report_to(events.clone());
    let (a, b) = (matrix(&directory, "a", 0.0), matrix(&directory, "b", 1.0));
    let sum = (0..64).map(|row| 64.0 * row as f32).sum::<f32>();
    for _ in 0..2 {
        assert_eq!((column(&models, &a).await, column(&models, &b).await), (sum, sum + 64.0));
    }
    let of_a = |event: &serde_json::Value| event["model_id"] == a.model.known_as();
    let told: Vec<_> = events.payloads("model.state").into_iter().filter(of_a).collect();
    let states: Vec<_> = told.iter().map(|event| event["state"].as_str().unwrap()).collect();
    let round = ["loading", "resident", "evicting", "warm"];
    assert_eq!(states, [round, round].concat());
    let stats = models.stats();
    assert!((5 << 30) + (16 << 10) <= stats.used_bytes && stats.used_bytes <= 9 << 30, "{stats:?}");
    for model in [&a, &b] {
        models.unload(&model.model).await.unwrap();
    }
    assert_eq!(models.stats().used_bytes, 0);
}

#[tokio::test]
async fn another_worker_finds_the_optimised_graph_and_replaces_a_damaged_one() {
    let directory = tempfile::tempdir().unwrap();
    let local = matrix(&directory, "a", 0.0);
    let sum = column(&with_host_tier(), &local).await;
    let found = || {
        let version = fs::read_dir(directory.path().join(".ort")).unwrap().next().unwrap().unwrap();
        fs::read_dir(version.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let [place] = &found()[..] else { panic!("one place: {:?}", found()) };
    let written = fs::metadata(place.join("graph.onnx")).unwrap().modified().unwrap();
    assert_eq!(column(&with_host_tier(), &local).await, sum);
    assert_eq!(fs::metadata(place.join("graph.onnx")).unwrap().modified().unwrap(), written);
    let size = |file| fs::metadata(place.join(file)).map(|found| found.len()).unwrap_or(0);
    let sizes = || (size("graph.onnx"), size("weights.bin"));
    let whole = sizes();
    for (file, damaged) in [("weights.bin", &b"short"[..]), ("graph.onnx", b"no graph")] {
        fs::write(place.join(file), damaged).unwrap();
        assert_eq!(column(&with_host_tier(), &local).await, sum, "{file}");
        assert_eq!((found().len(), sizes()), (1, whole), "{file} is written anew");
    }
    fs::remove_file(place.join("weights.bin")).unwrap();
    assert_eq!((column(&with_host_tier(), &local).await, sizes()), (sum, whole));
    // It can be read, as a graph of nothing, and is found to be of no use only when it is loaded.
    fs::write(place.join("graph.onnx"), b"").unwrap();
    assert_eq!((column(&with_host_tier(), &local).await, found().len()), (sum, 0));
    assert_eq!((column(&with_host_tier(), &local).await, sizes()), (sum, whole));
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

#[test]
fn the_first_provider_that_works_is_taken() {
    assert!(models_on(&[Provider::Cuda, Provider::Cpu]).is_ok());
    for provider in
        [Provider::Cuda, Provider::TensorRt, Provider::CoreMl, Provider::DirectMl, Provider::OpenVino]
    {
        let error = models_on(&[provider]).expect_err("a library for processors");
        assert_eq!(error.to_string(), format!("ONNX Runtime cannot use {provider} on this machine"));
    }
}

#[test]
fn says_the_version_of_the_library() {
    let version = models().engine_version().unwrap();
    assert!(version.starts_with("1."), "{version}");
}
