//! What a worker's binary answers without working: `list`, and `models prefetch`.

use std::{collections::BTreeSet, fs};

use gen_worker_testkit::FakeHub;
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use serde_json::{Value, json};

use super::CONFORMANCE;

fn settings(arguments: &[&str]) -> WorkerSettings {
    let settings = WorkerSettings::anywhere(CONFORMANCE).set("RUST_LOG", "warn");
    arguments.iter().fold(settings, |settings, argument| settings.argument(*argument))
}

async fn ended(settings: WorkerSettings) -> (Option<i32>, WorkerProcess) {
    let mut worker = settings.start();
    let status = worker.ended().await;
    (status.code(), worker)
}

#[tokio::test]
async fn a_worker_lists_its_functions_and_what_cozy_toml_says() {
    let settings = settings(&["list", "--json"]).set("ORT_DYLIB_PATH", "/no/such/library.so");
    let cozy = "deployment = 'my-worker'\n[models]\nbase = 'org/repo'\n[runtme]\n";
    fs::write(settings.directory().join("cozy.toml"), cozy).unwrap();
    let (code, worker) = ended(settings).await;
    assert_eq!(code, Some(0), "{}", worker.log());
    let manifest: Value = serde_json::from_str(&worker.out()).unwrap();
    assert_eq!(
        (&manifest["deployment"], &manifest["models"]),
        (&json!("my-worker"), &json!({"base": "org/repo"}))
    );
    let functions = manifest["functions"].as_array().unwrap();
    let names: BTreeSet<&str> = functions.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(
        names.is_superset(&["count", "echo", "infer", "save"].into()) && !names.contains("mirror"),
        "{names:?}"
    );
    let count = functions.iter().find(|one| one["name"] == "count").unwrap();
    let module = count["module"].as_str().unwrap();
    assert_eq!(count["delta_type"], count["output_type"]);
    assert_eq!(count["payload_type"], json!({"module": module, "qualname": "Count"}));
    assert!(worker.log().contains("warning: cozy.toml:4:2: unknown key `runtme`"), "{}", worker.log());

    let (code, worker) = ended(self::settings(&["list"])).await;
    assert_eq!(code, Some(0));
    assert!(worker.out().lines().any(|line| line == "echo {text} -> Text"), "{}", worker.out());
}

#[tokio::test]
async fn models_are_fetched_before_anybody_asks_for_them() {
    let hub = FakeHub::start().await;
    hub.put("/acme/one.onnx", b"one".to_vec());
    hub.put("/acme/two.onnx", b"two".to_vec());
    let settings = |arguments: &[&str]| {
        self::settings(arguments)
            .set("COZY_HUB_URL", hub.url())
            .set("COZY_HUB_TOKEN", "hub-token")
            .set("COZY_HUB_API", "direct")
    };
    let of_project = settings(&["models", "prefetch"]);
    let cozy = "[models]\na = 'acme/one.onnx'\nb = 'acme/two.onnx'\n";
    fs::write(of_project.directory().join("cozy.toml"), cozy).unwrap();
    let (code, worker) = ended(of_project).await;
    assert_eq!(code, Some(0), "{}", worker.log());
    let out = worker.out();
    let mut lines: Vec<_> = out.lines().map(|line| line.split_once('\t').unwrap()).collect();
    lines.sort();
    assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), ["acme/one.onnx", "acme/two.onnx"]);
    for ((_, folder), content) in lines.iter().zip(["one", "two"]) {
        let mut files = fs::read_dir(folder).unwrap().flatten().map(|file| file.path());
        assert!(files.any(|file| fs::read(file).is_ok_and(|data| data == content.as_bytes())), "{folder}");
    }

    let (code, worker) = ended(settings(&["models", "prefetch", "acme/one.onnx", "acme/none.onnx"])).await;
    assert_eq!(code, Some(3), "{}", worker.log());
    assert_eq!(worker.out().lines().count(), 1);
    assert!(worker.log().contains("acme/none.onnx: "), "{}", worker.log());

    for (arguments, said) in [(&["ftp://x"][..], "scheme `ftp:`"), (&[], "there is no model to fetch")] {
        let (code, worker) = ended(settings(&[&["models", "prefetch"], arguments].concat())).await;
        assert_eq!(code, Some(2), "{}", worker.log());
        assert!(worker.log().contains(said), "{}", worker.log());
    }
}
