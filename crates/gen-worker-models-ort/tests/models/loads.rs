//! What can be loaded and what cannot, on what, and who hears of it.

use super::*;

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
async fn is_what_is_asked_of_every_manager() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("net.onnx");
    fs::write(&path, "no model").unwrap();
    check_model_manager(&models(), &fixture("double_plus_one"), &local(&path)).await;
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
