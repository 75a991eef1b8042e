//! What comes back from main memory, and what is kept on disk for it.

use super::*;

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
