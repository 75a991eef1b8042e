//! Models with an example beside them; in a process of its own, because what is looked at is the process's log.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod given;

use std::{
    fs,
    io::Write,
    sync::{Arc, Mutex},
};

use gen_worker_core::{
    LocalModel, ModelRef,
    config::{ConfigErrors, Env},
    ports::{LeaseHolder, ModelManager},
};
use gen_worker_models_ort::{OrtConfig, OrtModels, ndarray::array};
use tempfile::TempDir;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/double_plus_one.onnx");

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `y = 2x + 1` with this example beside it.
fn with_example(directory: &TempDir, example: &str) -> LocalModel {
    let paths = ["net.onnx", "warmup.json"].map(|name| directory.path().join(name));
    fs::copy(FIXTURE, &paths[0]).unwrap();
    fs::write(&paths[1], example).unwrap();
    LocalModel {
        model: ModelRef::parse("acme/net").unwrap(),
        root: directory.path().to_owned(),
        files: paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).into(),
        size_bytes: 0,
        pin: None,
    }
}

#[tokio::test]
async fn a_model_is_called_once_with_its_example_or_taken_as_it_is() {
    let (directory, log) = (tempfile::tempdir().unwrap(), Log::default());
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter("gen_worker_models_ort=debug")
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let env = Env::from_iter([("WORKER_ORT_SESSIONS", "3")]);
    let config = OrtConfig::from_env(&env, &mut ConfigErrors::default());
    let models = OrtModels::new(OrtConfig { dylib: given::library(), ..config })
        .unwrap_or_else(|error| panic!("{error}"));
    for (example, said) in [
        (r#"{"x": {"shape": [1, 3], "data": [1, 2, 3]}}"#, "model warmed up"),
        (r#"{"x": {"shape": [1, 3]}}"#, "model warmed up"),
        ("nothing", "warmup.json is no JSON object"),
        ("{}", "warmup.json has no `x`"),
        (r#"{"x": {"shape": [1, 3], "data": [1]}}"#, "warmup.json has no `x`"),
        (r#"{"x": {"shape": [3]}}"#, "the model takes x f32[1, N]; the call gives x f32[3]"),
    ] {
        let local = with_example(&directory, example);
        log.take();
        let model = models.model(&local, &LeaseHolder::default()).await.unwrap();
        let log = log.take();
        assert!(log.contains(said), "{example}: {log}");
        assert_eq!(log.contains("sessions=3"), said == "model warmed up", "{example}: {log}");
        let mut outputs = model.run([("x", array![[4.0_f32]])]).await.unwrap();
        assert_eq!(outputs.take::<f32>("y").unwrap(), array![[9.0]].into_dyn());
        drop(model);
        models.unload(&local.model).await.unwrap();
    }
    log.take();
    an_example_that_takes_too_long_is_ended().await;
    let said = log.take();
    assert!(said.contains("its example takes more than 50ms: WORKER_ORT_WARM_UP_SECONDS says"), "{said}");
    let local = with_example(&directory, "");
    fs::File::options()
        .write(true)
        .open(directory.path().join("warmup.json"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    log.take();
    models.load(&local).await.unwrap();
    let log = log.take();
    assert!(log.contains("warmup.json has more than 16.0 MiB"), "{log}");
}

/// It would take hundreds of years.
async fn an_example_that_takes_too_long_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let local = with_example(
        &directory,
        &format!(r#"{{"rounds": {{"shape": [], "data": [{}]}}, "x": {{"shape": [1]}}}}"#, i64::MAX),
    );
    fs::copy(FIXTURE.replace("double_plus_one", "count_up"), &local.files["net.onnx"]).unwrap();
    for seconds in ["0.05", "0"] {
        let env = Env::from_iter([("WORKER_ORT_WARM_UP_SECONDS", seconds)]);
        let config = OrtConfig::from_env(&env, &mut ConfigErrors::default());
        let models = OrtModels::new(OrtConfig { dylib: given::library(), ..config }).unwrap();
        models.load(&local).await.unwrap();
    }
}
