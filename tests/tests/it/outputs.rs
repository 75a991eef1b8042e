//! What a run makes, brought out after its function has returned: large, in pieces, attached, told to stop.

use gen_worker::{Call, Function, Worker, WorkerError};
use gen_worker_core::{Algorithm, Digest};
use gen_worker_proto::scheduler::{self as v1, TaskExecutionResult, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeFileApi, FakeScheduler, Fault, FaultProxy, WorkerStream};
use gen_worker_tests::{Embedded, pack, unpack};
use serde_json::{Value, json};

use super::worker;

const TOKEN: &str = "token-of-the-run";

/// `attach` requires one.
const A_GPU: (&str, &str) = ("WORKER_FAKE_GPU_COUNT", "1");

/// A run whose files are at `base`; empty: nowhere.
fn request(run_id: &str, base: &str, function: &str, payload: &Value) -> v1::TaskExecutionRequest {
    v1::TaskExecutionRequest {
        run_id: run_id.into(),
        function_name: function.into(),
        input_payload: pack(payload).into(),
        file_base_url: base.into(),
        file_token: TOKEN.into(),
        ..Default::default()
    }
}

async fn run(stream: &mut WorkerStream, base: &str, function: &str, payload: Value) -> TaskExecutionResult {
    stream.send(Msg::RunRequest(request("r", base, function, &payload))).await;
    stream.next_result().await
}

fn output(result: &TaskExecutionResult) -> Value {
    assert!(result.success, "{result:?}");
    unpack(&result.output_payload)
}

/// What the conformance worker makes: byte `i` is `i mod 251`.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// What of a small raw output comes back in the result.
#[derive(serde::Deserialize)]
struct Inline {
    #[serde(with = "serde_bytes")]
    data: Vec<u8>,
}

fn addr(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

#[tokio::test]
async fn a_raw_output_too_large_for_the_result_is_saved() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, worker, mut stream) = worker(&[("WORKER_MAX_OUTPUT_BYTES", "2000")]).await;
    for (size, in_pieces) in [(5000, false), (5000, true), (1999, false)] {
        let payload =
            json!({"size": size, "content_type": "image/x", "name": "a/cat.png", "stream": in_pieces});
        let told = output(&run(&mut stream, &api.url(), "raw", payload.clone()).await);
        let (content, reference) = (pattern(size), "runs/r/outputs/a_cat.png");
        assert_eq!(api.file(reference).unwrap(), content);
        let sha256 = Digest::of(Algorithm::Sha256, &content).hex();
        let expected = json!({
            "file": {
                "ref": reference, "tenant_id": null, "mime_type": "image/png", "size_bytes": size,
                "sha256": sha256,
            },
            "content_type": "image/x", "file_name": "a/cat.png", "size_bytes": size, "sha256": sha256,
        });
        assert_eq!(told, expected);

        let nowhere = run(&mut stream, "", "raw", payload).await;
        assert_eq!(nowhere.error_type, "validation");
        assert!(nowhere.error_message.contains("Output payload too large"), "{nowhere:?}");
    }
    let small = run(&mut stream, &api.url(), "raw", json!({"size": 1500, "stream": true})).await;
    let small: Inline = unpack(&small.output_payload);
    assert_eq!(small.data, pattern(1500));
    assert_eq!((api.requests().len(), worker.run_files()), (3, 0));
}

#[tokio::test]
async fn a_streamed_output_is_stored_whole_and_tried_again() {
    let api = FakeFileApi::start(TOKEN).await;
    let url = api.url();
    let (_scheduler, worker, mut stream) =
        worker(&[("WORKER_URL_ALLOW", addr(&url)), ("WORKER_MAX_UPLOAD_BYTES", "300000")]).await;
    api.fault_once("/put/k", [Fault::Status(503)]);
    let to =
        |size: usize| json!({"size": size, "stream": true, "output_upload": {"put_url": api.put_url("k")}});
    let told = output(&run(&mut stream, "", "raw", to(300_000)).await);
    assert_eq!(api.uploaded("k").unwrap(), pattern(300_000));
    assert_eq!(told["sha256"], Digest::of(Algorithm::Sha256, &pattern(300_000)).hex());
    let said =
        stream.events("r").into_iter().filter(|event| event.event_type == "output.upload").last().unwrap();
    let said: Value = serde_json::from_slice(&said.payload_json).unwrap();
    assert_eq!((&said["bytes_done"], &said["bytes_total"]), (&json!(300_000), &json!(300_000)));

    let too_large = run(&mut stream, "", "raw", to(300_001)).await;
    assert_eq!(too_large.error_type, "validation");
    assert_eq!((api.requests().len(), worker.run_files()), (2, 0));
}

#[tokio::test]
async fn a_value_is_stored_as_json_where_the_target_says_so() {
    let api = FakeFileApi::start(TOKEN).await;
    let url = api.url();
    let (_scheduler, _worker, mut stream) = worker(&[("WORKER_URL_ALLOW", addr(&url))]).await;
    let headers = json!({"Content-Type": "application/json"});
    let to = json!({"text": "é", "output_upload": {"put_url": api.put_url("k"), "headers": headers}});
    assert_eq!(output(&run(&mut stream, "", "echo", to).await)["content_type"], "application/json");
    assert_eq!(api.uploaded("k").unwrap(), r#"{"text":"é"}"#);
}

#[tokio::test]
async fn a_saved_stream_is_stored_and_created_once() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, worker, mut stream) = worker(&[("WORKER_MAX_OUTPUT_FILE_BYTES", "4000")]).await;
    let save = |size: usize, create: bool| json!({"name": "x", "size": size, "create": create});
    let saved = output(&run(&mut stream, &api.url(), "save_stream", save(3500, true)).await);
    assert_eq!(saved["file"]["size_bytes"], 3500);
    let again = run(&mut stream, &api.url(), "save_stream", save(1, true)).await;
    assert_eq!(
        (again.error_type.as_str(), again.safe_message.as_str()),
        ("validation", "output path already exists")
    );
    assert_eq!(api.file("runs/r/outputs/x").unwrap(), pattern(3500));
    let too_large = run(&mut stream, &api.url(), "save_stream", save(4001, false)).await;
    assert_eq!(too_large.error_type, "validation");
    output(&run(&mut stream, &api.url(), "save_stream", save(4000, false)).await);
    assert_eq!((api.file("runs/r/outputs/x").unwrap().len(), worker.run_files()), (4000, 0));
}

#[tokio::test]
async fn what_is_attached_is_stored_before_the_result_is_sent() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, worker, mut stream) = worker(&[A_GPU]).await;
    let payload = json!({"names": ["a.png", "b/c.bin", "d"], "size": 70_000});
    let told = output(&run(&mut stream, &api.url(), "attach", payload.clone()).await);
    let files = told["files"].as_array().unwrap();
    for (name, file) in ["a.png", "b/c.bin", "d"].iter().zip(files) {
        let reference = format!("runs/r/outputs/{name}");
        assert_eq!(file["ref"], reference);
        assert_eq!(api.file(&reference).unwrap(), pattern(70_000), "{name}");
    }
    api.fault_always("/api/v1/file/runs/r/outputs/b/c.bin", Fault::Status(400));
    let failed = run(&mut stream, &api.url(), "attach", payload).await;
    assert!(!failed.success && failed.safe_message.contains("file save failed (400)"), "{failed:?}");
    let outside = run(&mut stream, &api.url(), "attach", json!({"names": ["../x"], "size": 1})).await;
    assert_eq!(outside.error_type, "validation");
    assert_eq!(worker.run_files(), 0);
}

#[tokio::test]
async fn the_gpu_is_free_while_bytes_move() {
    let api = FakeFileApi::start(TOKEN).await;
    let proxy = FaultProxy::start(addr(&api.url()).parse().unwrap()).await;
    let (_scheduler, _worker, mut stream) = worker(&[A_GPU, ("WORKER_DOWNLOAD_RETRIES", "5")]).await;
    let (slow, attached) = (format!("http://{}", proxy.addr()), json!({"names": ["x"], "size": 1000}));
    proxy.pause();
    stream.send(Msg::RunRequest(request("held", &slow, "attach", &attached))).await;
    stream.send(Msg::RunRequest(request("free", &api.url(), "attach", &attached))).await;
    let first = stream.next_result().await;
    assert!(first.success && first.run_id == "free", "{first:?}");
    proxy.drop_all();
    proxy.resume();
    let second = stream.next_result().await;
    assert!(second.success && second.run_id == "held", "{second:?}");
    assert_eq!(api.file("runs/held/outputs/x").unwrap(), pattern(1000));
}

/// The payload of a function that has the field for itself.
#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Forwarded {
    output_upload: Value,
}

#[tokio::test]
async fn a_field_that_the_function_declares_is_its_own() {
    let scheduler = FakeScheduler::start().await;
    let forwards = Function::builder::<Forwarded>("forwards", "tests")
        .asynchronous(|call: Call<Forwarded>| async move { Ok::<_, WorkerError>(call.input.output_upload) });
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let worker = Embedded::start(Worker::builder(settings).function(forwards.unwrap()));
    let mut stream = scheduler.accept().await;
    let told = json!({"put_url": 7});
    stream.run("r", "forwards", json!({"output_upload": told})).await;
    assert_eq!(output(&stream.next_result().await), told);
    worker.leave(stream).await;
}

#[tokio::test]
async fn a_run_keeps_its_place_until_its_output_is_stored() {
    let api = FakeFileApi::start(TOKEN).await;
    let proxy = FaultProxy::start(addr(&api.url()).parse().unwrap()).await;
    let (_scheduler, _worker, mut stream) =
        worker(&[A_GPU, ("WORKER_MAX_CONCURRENCY", "1"), ("WORKER_DOWNLOAD_RETRIES", "5")]).await;
    let (slow, attached) = (format!("http://{}", proxy.addr()), json!({"names": ["x"], "size": 1000}));
    proxy.pause();
    stream.send(Msg::RunRequest(request("held", &slow, "attach", &attached))).await;
    while proxy.accepted() == 0 {
        tokio::task::yield_now().await;
    }
    let other = json!({"text": ""});
    assert_eq!(run(&mut stream, "", "echo", other.clone()).await.safe_message, "worker busy");
    proxy.drop_all();
    proxy.resume();
    let stored = stream.next_result().await;
    assert!(stored.success && stored.run_id == "held", "{stored:?}");
    assert!(run(&mut stream, "", "echo", other).await.success);
}

#[tokio::test]
async fn a_run_told_to_stop_gives_up_its_upload() {
    let api = FakeFileApi::start(TOKEN).await;
    let proxy = FaultProxy::start(addr(&api.url()).parse().unwrap()).await;
    proxy.pause();
    let (slow, through) = (format!("http://{}", proxy.addr()), proxy.addr().to_string());
    // Nothing but the signal itself ends an upload that hangs.
    let (_scheduler, worker, mut stream) = worker(&[
        A_GPU,
        ("WORKER_URL_ALLOW", &through),
        ("WORKER_CANCEL_GRACE_SECONDS", "3600"),
        ("WORKER_HTTP_IDLE_TIMEOUT_SECONDS", "3600"),
    ])
    .await;
    let to = json!({"put_url": format!("{slow}/put/k")});
    let hanging = [
        ("raw", json!({"size": 9, "output_upload": to})),
        ("raw", json!({"size": 9, "stream": true, "output_upload": to})),
        ("save", json!({"name": "x", "size": 9})),
        ("attach", json!({"names": ["x"], "size": 9})),
    ];
    for (function, payload) in hanging {
        let dialled = proxy.accepted();
        stream.send(Msg::RunRequest(request("c", &slow, function, &payload))).await;
        while proxy.accepted() == dialled {
            tokio::task::yield_now().await;
        }
        let interrupt = v1::InterruptTaskCommand { run_id: "c".into(), ..Default::default() };
        stream.send(Msg::InterruptRunCmd(interrupt)).await;
        assert_eq!(stream.next_result().await.error_type, "canceled", "{function}");

        let deadline =
            v1::TaskExecutionRequest { timeout_ms: 300, ..request("d", &slow, function, &payload) };
        stream.send(Msg::RunRequest(deadline)).await;
        assert_eq!(stream.next_result().await.error_type, "timeout", "{function}");
    }
    assert_eq!((api.requests().len(), worker.run_files()), (0, 0));
}
