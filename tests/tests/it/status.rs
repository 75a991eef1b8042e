//! Health and metrics over HTTP, from a real worker.

use std::{collections::BTreeSet, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use gen_worker::{Call, Function, Ports, Worker, WorkerError};
use gen_worker_status::{Status, StatusConfig};
use gen_worker_testkit::{FakeFileApi, FakeScheduler};
use gen_worker_tests::{Embedded, WorkerProcess, WorkerSettings};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixDatagram},
    time::timeout,
};

use super::{
    CONFORMANCE,
    models::{MODEL, hub_and_worker, infer, onnx},
    worker,
};

const ANYWHERE: (&str, &str) = ("WORKER_HTTP_ADDR", "127.0.0.1:0");

/// The status and the body of the answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: worker\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

/// Whether it is well, and the reasons why not.
async fn health(address: SocketAddr, path: &str) -> (u16, Vec<String>) {
    let (status, body) = get(address, path).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["ok"], json!(status == 200));
    (status, serde_json::from_value(body["why"].clone()).unwrap())
}

pub(super) async fn metrics(address: SocketAddr) -> String {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    text
}

/// The value of this series.
#[track_caller]
pub(super) fn value(text: &str, series: &str) -> f64 {
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{series} is missing in\n{text}")).parse().unwrap()
}

/// Waits until so many runs were admitted.
async fn in_flight(address: SocketAddr, runs: usize) {
    let admitted =
        async { while value(&metrics(address).await, "gen_worker_runs_in_flight") < runs as f64 {} };
    timeout(Duration::from_secs(30), admitted).await.expect("the runs are admitted");
}

/// Where the worker says that it is seen.
pub(super) async fn address(worker: &WorkerProcess) -> SocketAddr {
    worker.says("health and metrics are served").await;
    let log = worker.log();
    let line = log.lines().find(|line| line.contains("health and metrics are served")).unwrap();
    serde_json::from_str::<Value>(line).unwrap()["address"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn runs_are_counted_by_function_and_outcome() {
    let (_scheduler, process, mut stream) = worker(&[ANYWHERE]).await;
    let address = address(&process).await;
    assert_eq!(asked_by_command(&address.to_string()).await, (Some(0), String::new()));
    stream.run("1", "echo", json!({"text": "a"})).await;
    stream.run("2", "fail", json!({"kind": "validation", "message": "no"})).await;
    stream.run("3", "nothing", json!({})).await;
    for _ in 0..3 {
        stream.next_result().await;
    }
    let text = metrics(address).await;
    for (series, expected) in [
        (r#"gen_worker_runs_total{function="echo",outcome="success"}"#, 1.0),
        (r#"gen_worker_runs_total{function="echo",outcome="timeout"}"#, 0.0),
        (r#"gen_worker_runs_total{function="fail",outcome="validation"}"#, 1.0),
        (r#"gen_worker_runs_refused_total{outcome="internal"}"#, 1.0),
        (r#"gen_worker_run_duration_seconds_count{function="echo"}"#, 1.0),
        (r#"gen_worker_run_stage_duration_seconds_count{stage="run"}"#, 2.0),
        ("gen_worker_runs_in_flight", 0.0),
        ("gen_worker_outbox_results", 3.0),
        ("gen_worker_connected", 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    assert!(value(&text, "gen_worker_outbox_result_bytes") > 0.0);
}

/// The exit code of `health`, and what it says.
async fn asked_by_command(address: &str) -> (Option<i32>, String) {
    let asks = WorkerSettings::anywhere(CONFORMANCE).set("WORKER_HTTP_ADDR", address).argument("health");
    let mut asks = asks.start();
    (asks.ended().await.code(), asks.log())
}

#[tokio::test]
async fn a_container_asks_by_a_command() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, said) = asked_by_command(&nobody).await;
    assert!(code == Some(1) && said.starts_with("error: the worker is not well: "), "{said}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, said) = asked_by_command(&silent.local_addr().unwrap().to_string()).await;
    assert_eq!((code, said.as_str()), (Some(1), "error: the worker is not well: it does not answer\n"));
    let (code, said) = asked_by_command("").await;
    assert!(code == Some(2) && said.contains("WORKER_HTTP_ADDR says nowhere"), "{said}");
}

#[tokio::test]
async fn models_and_files_are_counted_in_bytes() {
    let files = FakeFileApi::start("hub-token").await;
    let (_hub, _scheduler, process, mut stream) =
        hub_and_worker(&[ANYWHERE, ("FILE_API_BASE_URL", &files.url())]).await;
    let address = address(&process).await;
    for _ in 0..2 {
        assert!(infer(&mut stream, MODEL).await.success);
    }
    stream.run("1", "save", json!({"name": "a", "size": 1000})).await;
    assert!(stream.next_result().await.success);
    files.put("cat.png", "cat", "image/png");
    stream.run("2", "digest", json!({"file": {"ref": "cat.png"}})).await;
    assert!(stream.next_result().await.success);
    stream.run("3", "digest", json!({"file": {"ref": "none.png"}})).await;
    assert!(!stream.next_result().await.success);
    assert!(!infer(&mut stream, "acme/none.onnx").await.success);
    let text = metrics(address).await;
    for (series, expected) in [
        ("gen_worker_download_bytes_total", onnx().len() as f64),
        ("gen_worker_download_duration_seconds_count", 1.0),
        ("gen_worker_model_cache_hits_total", 1.0),
        ("gen_worker_downloads_failed_total", 1.0),
        (r#"gen_worker_upload_bytes_total{to="files"}"#, 1000.0),
        (r#"gen_worker_upload_duration_seconds_count{to="files"}"#, 1.0),
        (r#"gen_worker_uploads_failed_total{to="outputs"}"#, 0.0),
        ("gen_worker_input_bytes_total", 3.0),
        ("gen_worker_input_duration_seconds_count", 1.0),
        ("gen_worker_inputs_failed_total", 1.0),
        ("gen_worker_input_cache_hits_total", 0.0),
        ("gen_worker_model_loads_total", 1.0),
        ("gen_worker_model_memory_hits_total", 1.0),
        ("gen_worker_model_memory_evictions_total", 0.0),
        ("gen_worker_model_leases", 0.0),
        (r#"gen_worker_models{place="disk"}"#, 1.0),
        (r#"gen_worker_models{place="memory"}"#, 1.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    let bytes = value(&text, r#"gen_worker_model_memory_bytes{device="cpu"}"#);
    assert!(bytes > 0.0 && bytes < value(&text, r#"gen_worker_model_memory_budget_bytes{device="cpu"}"#));
}

#[tokio::test]
async fn each_gpu_is_measured() {
    let gpus = [("WORKER_FAKE_GPU_COUNT", "2"), ("WORKER_FAKE_GPU_MEMORY_BYTES", "8")];
    let (_scheduler, process, _stream) = worker(&[&[ANYWHERE], &gpus[..]].concat()).await;
    let text = metrics(address(&process).await).await;
    for (series, expected) in [
        ("gen_worker_gpus", 2.0),
        (r#"gen_worker_gpu_memory_bytes{device="1"}"#, 8.0),
        (r#"gen_worker_gpu_memory_used_bytes{device="1"}"#, 0.0),
        (r#"gen_worker_gpu_utilization_ratio{device="1"}"#, 0.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
}

#[tokio::test]
async fn what_is_served_is_what_the_page_lists() {
    let gpu = ("WORKER_FAKE_GPU_COUNT", "1");
    let (_scheduler, process, _stream) = worker(&[ANYWHERE, gpu]).await;
    let text = metrics(address(&process).await).await;
    let served: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let served: BTreeSet<&str> = served.into_iter().filter_map(|line| line.split(' ').next()).collect();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations/metrics.md");
    let page = std::fs::read_to_string(page).unwrap();
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    // What the orchestrator serves is on the page too.
    let listed: BTreeSet<&str> =
        listed.filter(|name| !name.starts_with("gen_worker_orchestrator_")).collect();
    assert_eq!(served, listed);
}

#[tokio::test]
async fn a_worker_says_why_it_is_not_ready() {
    let mut scheduler = FakeScheduler::start().await;
    let (name, anywhere) = ANYWHERE;
    let process = WorkerSettings::new(CONFORMANCE, &scheduler)
        .set(name, anywhere)
        .set("WORKER_DRAIN_TIMEOUT_SECONDS", "3600")
        .start();
    let address = address(&process).await;
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    stream.run("1", "sleep", json!({"ms": 60_000})).await;
    in_flight(address, 1).await;
    for path in ["/livez", "/startupz", "/readyz"] {
        assert_eq!(health(address, path).await, (200, vec![]), "{path}");
    }
    process.terminate().await;
    process.says("draining").await;
    let draining = vec!["Worker is draining; refusing new tasks".to_owned()];
    assert_eq!(health(address, "/readyz").await, (503, draining.clone()));
    scheduler.stop().await;
    process.says("not connected").await;
    let alone = vec!["not connected to a scheduler".to_owned(), draining[0].clone()];
    assert_eq!(health(address, "/readyz").await, (503, alone));
    assert_eq!(health(address, "/startupz").await, (200, vec![]));
    assert_eq!(health(address, "/livez").await, (200, vec![]));
    let text = metrics(address).await;
    assert!(value(&text, r#"gen_worker_reconnects_total{cause="lost"}"#) >= 1.0);
    assert_eq!(value(&text, r#"gen_worker_functions{state="available"}"#), 0.0);
}

#[tokio::test]
async fn a_worker_that_no_scheduler_answers_has_not_started() {
    let (name, anywhere) = ANYWHERE;
    let process = WorkerSettings::anywhere(CONFORMANCE)
        .set(name, anywhere)
        .set("SCHEDULER_ADDR", "127.0.0.1:9")
        .start();
    let address = address(&process).await;
    let why = vec!["no scheduler has answered yet".to_owned()];
    assert_eq!(health(address, "/startupz").await, (503, why));
    assert_eq!(health(address, "/livez").await.0, 200);
    assert_eq!(get(address, "/other").await.0, 404);
}

#[tokio::test]
async fn an_address_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut process = WorkerSettings::anywhere(CONFORMANCE).set("WORKER_HTTP_ADDR", &address).start();
    assert_eq!(process.ended().await.code(), Some(1));
    assert!(process.log().contains(&format!("nothing can be served at {address}")), "{}", process.log());
}

/// Longer than a silent peer may take to ask, and much shorter than one may take for the whole of its request.
const SOON: Duration = Duration::from_secs(6);

#[tokio::test]
async fn peers_that_say_nothing_keep_nobody_from_an_answer() {
    let (_scheduler, process, _stream) = worker(&[ANYWHERE]).await;
    let address = address(&process).await;
    let mut silent = Vec::new();
    for _ in 0..32 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let asked = timeout(SOON, health(address, "/livez")).await.expect("it is answered");
    assert_eq!(asked, (200, vec![]));
}

/// Every thread of the user runtime, and more than those, wait until the test says so.
#[tokio::test]
async fn health_is_answered_while_every_user_thread_is_busy() {
    let scheduler = FakeScheduler::start().await;
    let config = StatusConfig { http_addr: Some("127.0.0.1:0".to_owned()), ..StatusConfig::default() };
    let status = Status::open(&config, Vec::new()).unwrap().unwrap();
    let address = status.address().unwrap();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Arc::new(std::sync::Mutex::new(released));
    let busy = Function::builder::<Value>("busy", "tests")
        .asynchronous(move |_: Call<Value>| {
            let released = released.clone();
            async move {
                // Until the sender is dropped.
                let _ = released.lock().unwrap().recv();
                Ok::<_, WorkerError>(())
            }
        })
        .unwrap();
    let ports = Ports { observer: Some(Arc::new(status)), ..Ports::default() };
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let embedded = Embedded::start(Worker::builder(settings).function(busy).ports(ports));
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    let runs = std::thread::available_parallelism().unwrap().get() * 2;
    for run in 0..runs {
        stream.run(&run.to_string(), "busy", json!({})).await;
    }
    // A peer that says nothing takes nothing from the others.
    let silent = TcpStream::connect(address).await.unwrap();
    in_flight(address, runs).await;
    assert_eq!(health(address, "/livez").await, (200, vec![]));
    assert_eq!(health(address, "/readyz").await, (200, vec![]));
    drop((release, silent));
    for _ in 0..runs {
        assert!(stream.next_result().await.success);
    }
    embedded.leave(stream).await;
}

/// Waits until the service manager is told this.
async fn told(manager: &UnixDatagram, expected: &str) {
    let heard = async {
        loop {
            let mut message = vec![0; 4096];
            let length = manager.recv(&mut message).await.unwrap();
            let message = String::from_utf8(message[..length].to_vec()).unwrap();
            if message.lines().any(|line| line == expected) {
                return;
            }
        }
    };
    timeout(Duration::from_secs(30), heard).await.unwrap_or_else(|_| panic!("{expected} was not told"));
}

#[tokio::test]
async fn systemd_is_told_that_a_worker_has_started_lives_and_leaves() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    let socket = socket.to_str().unwrap();
    let (_scheduler, mut process, mut stream) =
        worker(&[("NOTIFY_SOCKET", socket), ("WATCHDOG_USEC", "100000")]).await;
    stream.run("1", "echo", json!({"text": "a"})).await;
    stream.next_result().await;
    for message in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        told(&manager, message).await;
    }
    process.terminate().await;
    told(&manager, "STOPPING=1").await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_manager_that_is_not_there_ends_the_start() {
    let mut process = WorkerSettings::anywhere(CONFORMANCE).set("NOTIFY_SOCKET", "/no/such/socket").start();
    assert_eq!(process.ended().await.code(), Some(1));
    assert!(process.log().contains("which NOTIFY_SOCKET says"), "{}", process.log());
}
