//! The example worker that enlarges pictures: from the command line, and through an orchestrator's API.

use std::path::{Path, PathBuf};

use gen_worker_core::{AssetRef, OutputBody};
use gen_worker_orchestrator::{
    Orchestrator, OrchestratorClient, OrchestratorConfig, RunState, RunSubmission,
};
use gen_worker_tests::{WorkerProcess, WorkerSettings};
use image::RgbImage;
use serde_json::{Value, json};

const UPSCALE: &str = env!("CARGO_BIN_EXE_upscale-under-test");
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/upscale");

fn example(path: &str) -> PathBuf {
    Path::new(EXAMPLE).join(path)
}

/// One run on this file from the command line; it has ended.
async fn run_once(picture: &Path, payload: Value) -> (i32, WorkerProcess) {
    let mut worker = WorkerSettings::anywhere(UPSCALE)
        .set("RUST_LOG", "warn")
        .argument("run")
        .argument("upscale")
        .argument(format!("image@{}", picture.display()))
        .argument(format!("--models={}", example("models").display()))
        .argument(format!("--payload={payload}"))
        .start();
    let status = worker.ended().await;
    (status.code().expect("no signal ended it"), worker)
}

/// Fails unless this is the cat, enlarged as the reference implementation does it.
fn assert_enlarged(path: &Path) {
    let read = |path: &Path| -> RgbImage { image::open(path).expect("a picture").into_rgb8() };
    let (ours, reference) = (read(path), read(&example("tests/chelsea_2x_reference.png")));
    assert_eq!(ours.dimensions(), (902, 600));
    assert_eq!(ours.dimensions(), reference.dimensions());
    let levels = ours.iter().zip(reference.iter());
    let furthest = levels.map(|(ours, theirs)| ours.abs_diff(*theirs)).max();
    assert!(furthest < Some(2), "{furthest:?} of 255 apart");
}

#[tokio::test]
async fn a_run_from_the_command_line_enlarges_the_picture() {
    let (code, worker) = run_once(&example("chelsea.png"), json!({"tile": 200})).await;
    let (out, log) = (worker.out(), worker.log());
    assert_eq!(code, 0, "{log}");
    assert_enlarged(&worker.directory().join("out/enlarged.png"));
    assert_eq!(out.lines().count(), 1, "{out}");
    let result: Value = serde_json::from_str(&out).unwrap();
    let result = &result["result"];
    assert_eq!((&result["width"], &result["height"]), (&json!(902), &json!(600)));
    assert_eq!(result["image"]["mime_type"], "image/png");
    let shown =
        ["model waifu2x/upconv_7/scale2x.onnx: completed", "100% tile", "saved: ", "out/enlarged.png"];
    let stages = ["fetch inputs", "fetch model", "load model", "run", "in all"];
    for text in shown.into_iter().chain(stages) {
        assert!(log.contains(text), "`{text}` is missing in\n{log}");
    }
}

#[tokio::test]
async fn a_run_that_fails_says_why_and_its_exit_code_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let corrupt = folder.path().join("corrupt.png");
    std::fs::write(&corrupt, b"\x89PNG\r\n\x1a\nand no picture").unwrap();
    let cat = example("chelsea.png");
    for (picture, payload, expected, said) in [
        (&corrupt, json!({}), 1, "image cannot be decoded"),
        (&cat, json!({"model_ref": "waifu2x/none.onnx"}), 3, "model cozy:waifu2x/none.onnx:latest not found"),
        (&cat, json!({"tile": 7}), 1, "tile must be 16 to 1024, not 7"),
    ] {
        let (code, worker) = run_once(picture, payload).await;
        let log = worker.log();
        let last = log.lines().last().unwrap_or_default();
        assert_eq!((code, worker.out().as_str()), (expected, ""), "{log}");
        assert!(last.starts_with("error: the run failed: ") && last.contains(said), "{log}");
    }
}

#[tokio::test]
async fn a_run_through_the_api_reports_its_progress_and_its_picture_can_be_had() {
    let folder = tempfile::tempdir().unwrap();
    let orchestrator = Orchestrator::start(OrchestratorConfig {
        models_dir: Some(example("models")),
        api_token: Some("api-token".into()),
        worker_token: Some("worker-token".into()),
        ..OrchestratorConfig::local(folder.path().join("data"))
    })
    .await
    .unwrap();
    let base = orchestrator.base_url().clone();
    let _worker = WorkerSettings::anywhere(UPSCALE)
        .set("SCHEDULER_ADDR", orchestrator.grpc_addr().to_string())
        .set("AUTH_TOKEN", "worker-token")
        .set("COZY_HUB_URL", format!("{base}hub"))
        .set("COZY_HUB_TOKEN", "worker-token")
        .start();
    let client = OrchestratorClient::new(base, Some("api-token".into())).unwrap();
    let cat = OutputBody::File(example("chelsea.png"));
    let asset = client.upload("chelsea.png", cat, Some("acme")).await.unwrap();
    let submission = RunSubmission {
        function: "upscale".to_owned(),
        payload: json!({"image": asset}),
        tenant_id: Some("acme".to_owned()),
        ..Default::default()
    };
    let run_id = client.submit(&submission).await.unwrap();
    let mut running = Vec::new();
    let run = client.follow(&run_id, |event| running.push(event.clone())).await.unwrap();
    assert_eq!(run.state, RunState::Succeeded, "{run:?}");
    let shares: Vec<f64> = running
        .iter()
        .filter(|event| event.event_type == "job.progress")
        .map(|event| serde_json::from_slice::<Value>(&event.payload).unwrap()["progress"].as_f64().unwrap())
        .collect();
    assert!(shares.len() > 1 && shares.is_sorted() && shares.last() == Some(&1.0), "{shares:?}");
    let image: AssetRef = serde_json::from_value(run.output.unwrap()["image"].clone()).unwrap();
    let target = folder.path().join("enlarged.png");
    client.download(&image.reference, image.tenant_id.as_deref(), &target).await.unwrap();
    assert_enlarged(&target);
    orchestrator.stop().await;
}
