//! The threads and the memory of models; in a process of its own and one after the other, because both are the process's.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod given;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use gen_worker_core::{
    LocalModel, ModelRef,
    config::{ConfigErrors, Env},
    ports::{LeaseHolder, ModelManager},
};
use gen_worker_models_ort::{OrtConfig, OrtModels, ndarray::array};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// Numbers of four bytes: 256 MiB.
const LARGE: u64 = 1 << 26;

fn models(sessions: &str) -> OrtModels {
    let env = Env::from_iter([("WORKER_ORT_SESSIONS", sessions), ("WORKER_ORT_THREADS", sessions)]);
    let config = OrtConfig::from_env(&env, &mut ConfigErrors::default());
    OrtModels::new(OrtConfig { dylib: given::library(), ..config }).unwrap_or_else(|error| panic!("{error}"))
}

fn local(name: &str, root: &Path, files: impl IntoIterator<Item = (String, PathBuf)>) -> LocalModel {
    LocalModel {
        model: ModelRef::parse(name).unwrap(),
        root: root.to_owned(),
        files: BTreeMap::from_iter(files),
        size_bytes: 0,
        pin: None,
    }
}

fn threads_of_sessions() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim() == "ort-session").count()
}

/// Bytes that the process has of its own.
fn own_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn what_is_loaded_and_called_leaves_neither_threads_nor_memory() {
    a_load_that_fails_half_way_leaves_no_thread().await;
    an_eviction_has_the_others_let_go_of_what_calls_took().await;
    what_one_large_call_took_goes_with_the_small_ones_after_it().await;
}

async fn a_load_that_fails_half_way_leaves_no_thread() {
    let (models, directory) = (models("16"), tempfile::tempdir().unwrap());
    let paths = ["unet", "vae"].map(|name| directory.path().join(name).join("model.onnx"));
    paths.iter().for_each(|path| fs::create_dir(path.parent().unwrap()).unwrap());
    fs::copy(format!("{FIXTURES}/double_plus_one.onnx"), &paths[0]).unwrap();
    fs::write(&paths[1], "no graph").unwrap();
    let files = ["unet/model.onnx", "vae/model.onnx"].map(str::to_owned).into_iter().zip(paths);
    let local = local("acme/half", directory.path(), files);
    for _ in 0..20 {
        models.load(&local).await.unwrap_err();
        assert_eq!(threads_of_sessions(), 0);
    }
}

async fn an_eviction_has_the_others_let_go_of_what_calls_took() {
    let models = models("1");
    let zeros = models.model(&fixture("zeros"), &LeaseHolder::default()).await.unwrap();
    let other = fixture("double_plus_one");
    models.load(&other).await.unwrap();
    drop(zeros.run([("shape", array![LARGE as i64])]).await.unwrap());
    let kept = own_memory();
    models.unload(&other.model).await.unwrap();
    let freed = async {
        while kept.saturating_sub(own_memory()) < LARGE * 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), freed).await.expect("what is idle lets go without a call");
}

async fn what_one_large_call_took_goes_with_the_small_ones_after_it() {
    let models = models("1");
    let zeros = models.model(&fixture("zeros"), &LeaseHolder::default()).await.unwrap();
    let before = own_memory();
    drop(zeros.run([("shape", array![LARGE as i64])]).await.unwrap());
    let grown = own_memory().saturating_sub(before);
    assert!(grown > LARGE * 3, "the session keeps {grown} of {} bytes for the next call", LARGE * 4);
    for _ in 0..64 {
        drop(zeros.run([("shape", array![1_i64])]).await.unwrap());
    }
    let grown = own_memory().saturating_sub(before);
    assert!(grown < LARGE, "it still has {grown} of {} bytes", LARGE * 4);
}

fn fixture(name: &str) -> LocalModel {
    let file = Path::new(FIXTURES).join(format!("{name}.onnx"));
    local(&format!("acme/{name}"), Path::new(FIXTURES), [("net.onnx".to_owned(), file)])
}
