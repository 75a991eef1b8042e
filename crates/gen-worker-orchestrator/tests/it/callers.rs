//! Who may call, what each sees, and how often: tokens, tenants, keys, limits.

use std::collections::BTreeSet;

use gen_worker_core::{AssetRef, ByteLimit, ByteSize, Secret, TenantId};
use gen_worker_net::{HttpResponse, Method, StatusCode};
use gen_worker_orchestrator::{Orchestrator, OrchestratorConfig, RunState};
use gen_worker_proto::{
    frontend::{self, frontend_service_client::FrontendServiceClient},
    scheduler::worker_scheduler_message::Msg,
};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::harness::{ALL, Harness};

const JSON: (&str, &str) = ("content-type", "application/json");
const OPERATOR: &str = "Bearer operator";
const ACME: &str = "Bearer a";
const OTHER: &str = "Bearer b";

/// An operator and two tenants.
async fn three_callers() -> Harness {
    Harness::with(|config| {
        let tenant = |name, token: &str| (TenantId::parse(name).unwrap(), Secret::from(token));
        config.api_token = Some("operator".into());
        config.tenant_tokens = vec![tenant("acme", "a"), tenant("other", "b")];
    })
    .await
}

impl Harness {
    async fn get(&self, path: &str, token: &str) -> HttpResponse {
        self.send(Method::GET, path, &[("authorization", token)], b"").await
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> HttpResponse {
        self.send(Method::POST, path, &[("authorization", token), JSON], body.to_string().as_bytes()).await
    }

    /// Asks for a run of `f` with this token, and returns its id.
    async fn ask(&self, token: &str) -> String {
        let submitted: Value =
            self.post("/v1/runs", token, json!({"function": "f"})).await.json(1000).await.unwrap();
        submitted["run_id"].as_str().unwrap().to_owned()
    }
}

async fn code_of(answer: HttpResponse) -> (u16, String) {
    let status = answer.status().as_u16();
    let told: Value = answer.json(1000).await.unwrap();
    (status, told["error"]["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_tenant_sees_its_own_runs_only() {
    let harness = three_callers().await;
    let run_id = harness.ask(ACME).await;
    let listed = async |token| harness.get("/v1/runs", token).await.json::<Value>(10_000).await.unwrap();
    assert_eq!(listed(ACME).await["runs"][0]["tenant_id"], "acme");
    assert_eq!(listed(OTHER).await, json!({"runs": []}));
    assert_eq!(listed(OPERATOR).await["runs"][0]["run_id"], run_id.as_str());
    for path in ["", "/events", "/result"] {
        let answer = harness.get(&format!("/v1/runs/{run_id}{path}"), OTHER).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
    // It cannot be told from a run that there is not.
    let path = format!("/v1/runs/{run_id}/cancel");
    let canceled: Value = harness.post(&path, OTHER, json!({})).await.json(1000).await.unwrap();
    assert_eq!((&canceled["state"], &canceled["function"]), (&json!("canceled"), &json!("")));
    let stands: Value = harness.get(&format!("/v1/runs/{run_id}"), ACME).await.json(1000).await.unwrap();
    assert_eq!(stands["state"], "queued");
    for path in ["/v1/runs", "/v1/runs?wait_ms=60000"] {
        let another = harness.post(path, ACME, json!({"function": "f", "tenant_id": "other"})).await;
        assert_eq!(code_of(another).await, (403, "credential".to_owned()), "{path}");
    }
    let drain = harness.post("/v1/workers/w/drain", ACME, json!({})).await;
    assert_eq!(drain.status(), StatusCode::FORBIDDEN);
    let unknown = harness.get("/v1/runs", "Bearer c").await;
    assert_eq!(unknown.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_tenant_reaches_its_own_files_only() {
    let harness = three_callers().await;
    let headers = [("authorization", ACME)];
    let stored = harness.send(Method::POST, "/v1/files?name=x.txt", &headers, b"secret").await;
    let stored: AssetRef = stored.json(1000).await.unwrap();
    assert_eq!(stored.tenant_id.as_deref(), Some("acme"));
    let path = format!("/v1/files/{}", stored.reference);
    for (query, token, status) in [
        ("", ACME, StatusCode::OK),
        ("?tenant_id=acme", ACME, StatusCode::OK),
        ("", OTHER, StatusCode::NOT_FOUND),
        ("?tenant_id=acme", OTHER, StatusCode::FORBIDDEN),
        ("?tenant_id=acme", OPERATOR, StatusCode::OK),
    ] {
        let answer = harness.get(&format!("{path}{query}"), token).await;
        assert_eq!(answer.status(), status, "{query} {token}");
    }
    let upload = harness.send(Method::POST, "/v1/files?name=x&tenant_id=other", &headers, b"x").await;
    assert_eq!(upload.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn grpc_callers_are_tenants_too() {
    let harness = three_callers().await;
    let mut client = FrontendServiceClient::new(harness.channel().await);
    fn with<T>(token: &str, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        request
    }
    let asked = frontend::ExecuteActionRequest { function_name: "f".to_owned(), ..Default::default() };
    let refused = client.execute_action(with("Bearer c", asked.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let run_id = client.execute_action(with(ACME, asked)).await.unwrap().into_inner().run_id;
    let mut worker = harness.worker(&ALL, 1).await;
    let request = worker.run().await;
    assert_eq!(request.tenant_id, "acme");
    worker.answer(&request, Ok(json!({}))).await;
    harness.client.follow(&run_id, |_| {}).await.unwrap();
    let get = frontend::GetRunRequest { run_id };
    assert!(client.get_run(with(ACME, get.clone())).await.unwrap().into_inner().success);
    assert_eq!(client.get_run(with(OTHER, get)).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_key_makes_asking_twice_safe() {
    let harness = three_callers().await;
    let ask = async |token: &str, key: &str, n: u32| {
        let body = json!({"function": "f", "payload": {"n": n}}).to_string();
        let headers = [("authorization", token), JSON, ("idempotency-key", key)];
        let answer = harness.send(Method::POST, "/v1/runs", &headers, body.as_bytes()).await;
        let status = answer.status().as_u16();
        let told: Value = answer.json(1000).await.unwrap();
        (status, told["run_id"].as_str().unwrap_or_default().to_owned())
    };
    let (status, run_id) = ask(ACME, "k 1", 1).await;
    assert_eq!(status, 202);
    assert_eq!(ask(ACME, "k 1", 1).await, (200, run_id.clone()));
    assert_eq!(ask(ACME, "k 1", 2).await.0, 409);
    assert_ne!(ask(ACME, "k 2", 1).await.1, run_id);
    assert_ne!(ask(OTHER, "k 1", 1).await.1, run_id);
    assert_eq!(ask(ACME, "", 1).await.0, 400);
    let headers = [("authorization", ACME), JSON, ("idempotency-key", "k")];
    let both = br#"{"function": "f", "run_id": "r"}"#;
    let both = harness.send(Method::POST, "/v1/runs", &headers, both).await;
    assert_eq!(code_of(both).await, (400, "usage".to_owned()));
}

#[tokio::test]
async fn a_callers_trace_goes_to_the_worker_with_the_run() {
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    let mut grpc = FrontendServiceClient::new(harness.channel().await);
    for (sent, passed_on) in [
        (vec![("traceparent", PARENT), ("tracestate", "vendor=1")], (PARENT, "vendor=1")),
        (vec![("traceparent", PARENT)], (PARENT, "")),
        (vec![], ("", "")),
        (vec![("traceparent", "00-nonsense"), ("tracestate", "vendor=1")], ("", "")),
        (vec![("tracestate", "vendor=1")], ("", "")),
    ] {
        let headers = [&sent[..], &[JSON]].concat();
        let answer = harness.send(Method::POST, "/v1/runs", &headers, br#"{"function": "f"}"#).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{sent:?}");
        let run = worker.run().await;
        assert_eq!((run.traceparent.as_str(), run.tracestate.as_str()), passed_on, "HTTP: {sent:?}");
        worker.answer(&run, Ok(json!({}))).await;

        let mut request = Request::new(frontend::ExecuteActionRequest {
            function_name: "f".to_owned(),
            ..Default::default()
        });
        for (name, value) in &sent {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        grpc.execute_action(request).await.unwrap();
        let run = worker.run().await;
        assert_eq!((run.traceparent.as_str(), run.tracestate.as_str()), passed_on, "gRPC: {sent:?}");
        worker.answer(&run, Ok(json!({}))).await;
    }
    // Whoever asks again, from another span, asks for the same.
    let ask = async |parent: &str| {
        let headers = [("traceparent", parent), ("idempotency-key", "k"), JSON];
        harness.send(Method::POST, "/v1/runs", &headers, br#"{"function": "f"}"#).await.status()
    };
    assert_eq!(ask(PARENT).await, StatusCode::ACCEPTED);
    assert_eq!(ask(&PARENT.replace("b7ad", "0000")).await, StatusCode::OK);
}

#[tokio::test]
async fn an_id_is_everybodys_and_tells_nothing_of_its_run() {
    let harness = three_callers().await;
    let ask = async |token: &str, run_id: &str, n: u32| {
        let body = json!({"function": "f", "payload": {"n": n}, "run_id": run_id});
        let answer = harness.post("/v1/runs", token, body).await;
        (answer.status().as_u16(), answer.json::<Value>(1000).await.unwrap())
    };
    assert_eq!(ask(ACME, "r", 1).await.0, 202);
    // The very same request of another tenant is another, and is answered as any other request is.
    let (status, told) = ask(OTHER, "r", 1).await;
    assert_eq!((status, &told), (409, &ask(ACME, "r", 2).await.1));
    assert!(!told.to_string().contains("acme"), "{told}");
    assert_eq!(ask(OPERATOR, "r", 1).await.1, told);
    assert_eq!(harness.get("/v1/runs/r", OTHER).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(ask(ACME, "key-0", 1).await.0, 400);
}

#[tokio::test]
async fn a_cancel_may_come_before_its_run_and_outlives_the_process() {
    let harness = Harness::start().await;
    let cancel = harness.send(Method::POST, "/v1/runs/late/cancel", &[], b"").await;
    assert_eq!(cancel.status(), StatusCode::ACCEPTED);
    let submit = async |harness: &Harness, run_id: &str| {
        let body = json!({"function": "f", "run_id": run_id}).to_string();
        code_of(harness.send(Method::POST, "/v1/runs", &[JSON], body.as_bytes()).await).await
    };
    assert_eq!(submit(&harness, "late").await, (409, "canceled".to_owned()));
    assert_eq!(submit(&harness, "another").await.0, 202);
    assert_eq!(harness.client.cancel("another").await.unwrap().state, RunState::Canceled);
    assert_eq!(harness.client.cancel("unknown").await.unwrap().state, RunState::Canceled);
    let Harness { orchestrator, folder, .. } = harness;
    orchestrator.stop().await;
    let config = OrchestratorConfig::local(folder.path().join("data"));
    let harness = Harness::of(Orchestrator::start(config).await.unwrap(), None, folder);
    assert_eq!(submit(&harness, "late").await, (409, "canceled".to_owned()));
    assert_eq!(
        harness.send(Method::POST, "/v1/runs/.x/cancel", &[], b"").await.status(),
        StatusCode::BAD_REQUEST
    );
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_ask_again() {
    let harness = Harness::with(|config| config.rate_limit = 1).await;
    let ask = async || harness.send(Method::GET, "/v1/workers", &[], b"").await;
    let mut refused = ask().await;
    for _ in 0..10 {
        if refused.status() == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        refused = ask().await;
    }
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(code_of(refused).await, (429, "rate".to_owned()));
    let mut grpc = FrontendServiceClient::new(harness.channel().await);
    let limited = grpc.get_run(frontend::GetRunRequest { run_id: "r".to_owned() }).await.unwrap_err();
    assert_eq!(limited.code(), Code::ResourceExhausted);
    assert_eq!(harness.send(Method::GET, "/healthz", &[], b"").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_in_the_same_form() {
    let harness = Harness::with(|config| config.max_body = ByteLimit::Max(ByteSize(100))).await;
    let body = json!({"function": "f", "payload": {"text": "x".repeat(100)}}).to_string();
    let refused = harness.send(Method::POST, "/v1/runs", &[JSON], body.as_bytes()).await;
    assert_eq!(code_of(refused).await, (413, "capacity".to_owned()));
    let stored = harness.send(Method::POST, "/v1/files?name=x", &[], body.as_bytes()).await;
    assert_eq!(stored.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_description_names_the_methods_that_there_are() {
    let harness = Harness::start().await;
    let answer = harness.send(Method::GET, "/v1/openapi.json", &[], b"").await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let document: Value = answer.json(1 << 20).await.unwrap();
    for (path, item) in document["paths"].as_object().unwrap() {
        let described: BTreeSet<_> =
            item.as_object().unwrap().keys().filter(|key| *key != "parameters").collect();
        let mut there = BTreeSet::new();
        let concrete = path.replace(['{', '}'], "x");
        for (name, method) in [
            ("get", Method::GET),
            ("put", Method::PUT),
            ("post", Method::POST),
            ("delete", Method::DELETE),
            ("patch", Method::PATCH),
        ] {
            let status = harness.send(method, &concrete, &[], b"").await.status();
            if status != StatusCode::METHOD_NOT_ALLOWED {
                there.insert(name.to_owned());
            }
        }
        assert_eq!(described, there.iter().collect(), "{path}");
    }
}

#[tokio::test]
async fn the_page_is_there_for_all_and_does_nothing_by_itself() {
    let harness = three_callers().await;
    let page = harness.send(Method::GET, "/", &[], b"").await;
    assert_eq!(page.status(), StatusCode::OK);
    let header = |name: &str| page.headers()[name].to_str().unwrap();
    let policy = header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "trusted-types 'none'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!((header("x-content-type-options"), header("referrer-policy")), ("nosniff", "no-referrer"));
    let script = harness.send(Method::GET, "/dashboard/app.js", &[], b"").await;
    assert!(script.headers()["content-type"].to_str().unwrap().starts_with("text/javascript"));
    let none = harness.send(Method::GET, "/dashboard/none.js", &[], b"").await;
    assert_eq!(none.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn without_a_token_other_pages_and_names_are_refused() {
    let harness = Harness::start().await;
    for header in
        [("origin", "https://page.example"), ("sec-fetch-site", "cross-site"), ("host", "rebound.example")]
    {
        let answer = harness.send(Method::GET, "/v1/runs", &[header], b"").await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{header:?}");
    }
}

#[tokio::test]
async fn a_stored_file_is_never_a_script() {
    let harness = Harness::start().await;
    let stored = harness.send(Method::POST, "/v1/files?name=x.js", &[], b"alert(1)").await;
    let stored: AssetRef = stored.json(1000).await.unwrap();
    let path = format!("/v1/files/{}", stored.reference);
    for (purpose, status) in
        [("script", StatusCode::FORBIDDEN), ("worker", StatusCode::FORBIDDEN), ("empty", StatusCode::OK)]
    {
        let answer = harness.send(Method::GET, &path, &[("sec-fetch-dest", purpose)], b"").await;
        assert_eq!(answer.status(), status, "{purpose}");
    }
    let opened = harness.send(Method::GET, &path, &[], b"").await;
    assert_eq!(opened.headers()["content-security-policy"], "sandbox");
    assert_eq!(opened.headers()["x-content-type-options"], "nosniff");
}

#[tokio::test]
async fn the_newest_runs_are_listed_up_to_a_limit() {
    let harness = Harness::start().await;
    let _first = harness.submit("f", None).await;
    let last = harness.submit("f", None).await;
    let listed: Value =
        harness.send(Method::GET, "/v1/runs?limit=1", &[], b"").await.json(10_000).await.unwrap();
    assert_eq!(listed["runs"].as_array().unwrap().len(), 1);
    assert_eq!(listed["runs"][0]["run_id"], last.as_str());
}

#[tokio::test]
async fn a_worker_says_what_becomes_of_its_models() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 1).await;
    assert!(matches!(worker.next().await, Msg::SchedulerHello(_)));
    worker.event("", "model.download", r#"{"model_id": "m", "state": "downloading", "bytes_done": 1}"#).await;
    worker.event("", "model.state", r#"{"model_id": "m", "state": "resident", "bytes": 7}"#).await;
    // The stream keeps order: once a run is handed out, what was said before it has been heard.
    let run_id = harness.submit("f", None).await;
    let request = worker.run().await;
    worker.answer(&request, Ok(json!({}))).await;
    harness.client.follow(&run_id, |_| {}).await.unwrap();
    let workers = harness.client.workers().await.unwrap();
    let model = &workers["workers"][0]["models"][0];
    assert_eq!(
        (&model["model_id"], &model["state"], &model["bytes"]),
        (&json!("m"), &json!("resident"), &json!(7))
    );
    assert_eq!(model["download"]["bytes_done"], 1);
}
