//! Which trace a run belongs to: taken from the scheduler, passed on to those who may know it, and shown to a collector.

use std::sync::{Arc, Mutex, PoisonError};

use gen_worker::{Call, Function, Worker, WorkerError};
use gen_worker_proto::scheduler::{TaskExecutionRequest, worker_scheduler_message::Msg};
use gen_worker_testkit::{FakeFileApi, FakeScheduler, Fault, RecordedRequest, WorkerStream};
use gen_worker_tests::{Embedded, pack, unpack};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, any_value},
    trace::v1::{Span, status::StatusCode},
};
use prost::Message;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{
    models::{MODEL, hub_and_worker},
    worker,
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const STATE: &str = "vendor=of-the-scheduler";

fn traceparent() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

/// A run that belongs to the trace.
async fn run(stream: &mut WorkerStream, run_id: &str, function: &str, payload: Value) {
    let request = TaskExecutionRequest {
        run_id: run_id.to_owned(),
        function_name: function.to_owned(),
        input_payload: pack(&payload).into(),
        traceparent: traceparent(),
        tracestate: STATE.to_owned(),
        ..Default::default()
    };
    stream.send(Msg::RunRequest(request)).await;
}

/// An OTLP receiver: hands out what it is sent, decoded, with the heads of the requests.
struct Collector {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
    exports: mpsc::Receiver<ExportTraceServiceRequest>,
    _server: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, exports) = mpsc::channel(64);
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let kept = heads.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (head, export) = receive(connection).await;
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(head);
                if sender.send(export).await.is_err() {
                    return;
                }
            }
        });
        Self { url, heads, exports, _server: server }
    }

    /// Waits until a span of this name has come, and returns all that have come by then with what is said of the worker.
    async fn until(&mut self, name: &str) -> (Vec<Span>, String) {
        let mut spans: Vec<Span> = Vec::new();
        let mut resource = String::new();
        let heard = async {
            while !spans.iter().any(|span| span.name == name) {
                let export = self.exports.recv().await.unwrap();
                for of_resource in export.resource_spans {
                    resource = format!("{:?}", of_resource.resource);
                    spans.extend(of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
                }
            }
        };
        timeout(std::time::Duration::from_secs(30), heard).await.expect("the span is sent");
        (spans, resource)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One request, and an empty answer.
async fn receive(mut connection: TcpStream) -> (String, ExportTraceServiceRequest) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).await.unwrap();
    connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
    (head, ExportTraceServiceRequest::decode(&body[..]).unwrap())
}

fn text(span: &Span, name: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match &attribute.value {
        Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) => Some(text.clone()),
        _ => None,
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name} among {spans:#?}"))
}

/// What the requests to this path say of the trace.
fn told(requests: &[RecordedRequest], path: &str) -> Vec<Option<(String, Option<String>)>> {
    let of = |request: &RecordedRequest, name: &str| request.header(name).map(str::to_owned);
    let asked = requests.iter().filter(|request| request.path.starts_with(path));
    asked.map(|request| Some((of(request, "traceparent")?, of(request, "tracestate")))).collect()
}

#[tokio::test]
async fn a_run_is_a_span_below_the_schedulers_and_is_told_to_hub_and_files() {
    let (mut collector, files) = (Collector::start().await, FakeFileApi::start("hub-token").await);
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=secret-of-the-collector"),
        ("OTEL_SERVICE_NAME", "painter"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("WORKER_ID", "w1"),
        ("FILE_API_BASE_URL", &files.url()),
        ("RUST_LOG", "trace"),
    ];
    let (hub, _scheduler, process, mut stream) = hub_and_worker(&settings).await;
    run(&mut stream, "1", "infer", json!({"model_ref": MODEL, "values": [1.0]})).await;
    let result = stream.next_result().await;
    assert!(result.success, "{result:?}");
    let (spans, resource) = collector.until("infer").await;
    let infer = named(&spans, "infer");
    assert_eq!((hex(&infer.trace_id), hex(&infer.parent_span_id)), (TRACE.to_owned(), PARENT.to_owned()));
    assert_eq!(
        (infer.trace_state.as_str(), infer.status.as_ref().unwrap().code),
        (STATE, StatusCode::Ok as i32)
    );
    assert_eq!(text(infer, "gen_worker.run_id").as_deref(), Some("1"));
    assert_eq!(text(infer, "gen_worker.outcome").as_deref(), Some("success"));
    for stage in ["model", "load", "run"] {
        let stage = named(&spans, stage);
        assert_eq!((&stage.trace_id, &stage.parent_span_id), (&infer.trace_id, &infer.span_id));
        assert!(stage.start_time_unix_nano <= stage.end_time_unix_nano);
        assert!(infer.start_time_unix_nano <= stage.start_time_unix_nano);
    }
    for words in ["painter", "w1"] {
        assert!(resource.contains(words), "{resource}");
    }
    let below = |span: &Span| format!("00-{TRACE}-{}-01", hex(&span.span_id));
    let asked = told(&hub.requests(), "/acme");
    assert!(
        !asked.is_empty() && asked.iter().all(|told| *told == Some((below(infer), Some(STATE.to_owned())))),
        "{asked:?}"
    );

    run(&mut stream, "2", "save", json!({"name": "a", "size": 10})).await;
    run(&mut stream, "3", "fail", json!({"kind": "fatal", "message": "no paint"})).await;
    for _ in 0..2 {
        stream.next_result().await;
    }
    let (mut spans, _) = collector.until("save").await;
    if !spans.iter().any(|span| span.name == "fail") {
        spans.extend(collector.until("fail").await.0);
    }
    let asked = told(&files.requests(), "/api/v1/file/runs/2");
    assert_eq!(asked, [Some((below(named(&spans, "save")), Some(STATE.to_owned())))]);
    let failed = named(&spans, "fail");
    let status = failed.status.clone().unwrap();
    assert_eq!((status.code, status.message.as_str()), (StatusCode::Error as i32, "no paint"));
    assert_eq!(text(failed, "gen_worker.outcome").as_deref(), Some("fatal"));

    // The collector is given its key; the log and the environment are not.
    assert!(collector.heads().iter().all(
        |head| head.starts_with("post /v1/traces ") && head.contains("api-key: secret-of-the-collector")
    ));
    assert!(!process.log().contains("secret-of-the-collector"));
    #[cfg(target_os = "linux")]
    assert!(!process.proc("environ").contains("secret-of-the-collector"));
}

#[tokio::test]
async fn a_trace_is_told_to_nobody_whom_a_payload_named() {
    let files = FakeFileApi::start("hub-token").await;
    files.fault_once("/put/k", [Fault::Status(503)]);
    let (site, _scheduler, _process, mut stream) = hub_and_worker(&[("WORKER_URL_ALLOW", "127.0.0.1")]).await;
    site.put("/cat.png", "cat");
    let put = json!({"size": 10, "output_upload": {"put_url": files.put_url("k")}});
    for (run_id, function, payload) in [
        ("1", "raw", put),
        ("2", "digest", json!({"file": {"ref": format!("{}/cat.png", site.url())}})),
        ("3", "infer", json!({"model_ref": format!("{}/acme/double.onnx", site.url()), "values": [1.0]})),
    ] {
        run(&mut stream, run_id, function, payload).await;
        let result = stream.next_result().await;
        assert!(result.success, "{function}: {result:?}");
    }
    for (peer, path) in [(files.requests(), "/put"), (site.requests(), "/cat"), (site.requests(), "/acme")] {
        let told = told(&peer, path);
        assert!(!told.is_empty() && told.iter().all(Option::is_none), "{path}: {told:?}");
    }
}

/// Runs pass on what they were given, also where no traces are made; a run that was given nothing says nothing.
#[tokio::test]
async fn user_code_sees_the_trace_that_the_scheduler_named() {
    let seen = Function::builder::<Value>("seen", "tests")
        .asynchronous(|call: Call<Value>| async move {
            let trace = call.context.trace();
            Ok::<_, WorkerError>(json!(
                trace.map(|trace| (trace.parent().to_owned(), trace.state().map(str::to_owned)))
            ))
        })
        .unwrap();
    let scheduler = FakeScheduler::start().await;
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let embedded = Embedded::start(Worker::builder(settings).function(seen));
    let mut stream = scheduler.accept().await;
    stream.next_registration().await;
    run(&mut stream, "1", "seen", json!({})).await;
    assert_eq!(unpack::<Value>(&stream.next_result().await.output_payload), json!([traceparent(), STATE]));
    stream.run("2", "seen", json!({})).await;
    assert_eq!(unpack::<Value>(&stream.next_result().await.output_payload), Value::Null);
    embedded.leave(stream).await;
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_nothing_else() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let settings = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
    ];
    let (_scheduler, mut process, mut stream) = worker(&settings).await;
    run(&mut stream, "1", "echo", json!({"text": "a"})).await;
    assert!(stream.next_result().await.success);
    // It has been dialled, and waits for an answer.
    let _dialled = silent.accept().await.unwrap();
    run(&mut stream, "2", "echo", json!({"text": "a"})).await;
    assert!(stream.next_result().await.success);
    process.says("BatchSpanProcessor.ExportError").await;
    process.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert_eq!(process.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_last_spans_are_sent_before_the_worker_ends() {
    let mut collector = Collector::start().await;
    let settings =
        [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "3600000")];
    let (_scheduler, mut process, mut stream) = worker(&settings).await;
    run(&mut stream, "1", "echo", json!({"text": "a"})).await;
    assert!(stream.next_result().await.success);
    process.terminate().await;
    stream.ended().await.unwrap();
    stream.end_ok();
    assert_eq!(process.ended().await.code(), Some(0));
    assert_eq!(named(&collector.until("echo").await.0, "echo").trace_id.len(), 16);
}
