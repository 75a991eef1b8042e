//! Files that runs read and store (contract §7): at the run's file API, at public URLs, at presigned addresses.

use std::collections::BTreeMap;

use gen_worker::{Asset, Call, Env, Function, Worker, WorkerConfig, WorkerError, assemble};
use gen_worker_core::{Algorithm, Digest};
use gen_worker_proto::scheduler::{self as v1, TaskExecutionResult, worker_scheduler_message::Msg};
use gen_worker_testkit::{
    FakeFileApi, FakeHub, FakeScheduler, Fault, FaultProxy, RecordedRequest, WorkerStream,
};
use gen_worker_tests::{Embedded, WorkerProcess, pack, unpack};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::worker;

const TOKEN: &str = "token-of-the-run";
const PNG: &[u8] = b"\x89PNG\r\n\x1a\nwhatever follows";

/// A run whose files are at `base`, opened by `token`.
async fn run_at(
    stream: &mut WorkerStream,
    (base, token): (&str, &str),
    function: &str,
    payload: Value,
) -> TaskExecutionResult {
    let request = v1::TaskExecutionRequest {
        run_id: "r".into(),
        function_name: function.into(),
        input_payload: pack(&payload).into(),
        tenant_id: "acme".into(),
        file_base_url: base.into(),
        file_token: token.into(),
        ..Default::default()
    };
    stream.send(Msg::RunRequest(request)).await;
    stream.next_result().await
}

async fn run(
    stream: &mut WorkerStream,
    api: &FakeFileApi,
    function: &str,
    payload: Value,
) -> TaskExecutionResult {
    run_at(stream, (&api.url(), TOKEN), function, payload).await
}

fn output(result: &TaskExecutionResult) -> Value {
    assert!(result.success, "{result:?}");
    unpack(&result.output_payload)
}

/// `error_type` and `safe_message`.
fn refusal(result: &TaskExecutionResult) -> (&str, &str) {
    assert!(!result.success && result.output_payload.is_empty(), "{result:?}");
    (&result.error_type, &result.safe_message)
}

fn sha256(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).hex()
}

/// What `save` and `raw` make: byte `i` is `i mod 251`.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|i| (i % 251) as u8).collect()
}

/// Host and port, as `WORKER_URL_ALLOW` takes them.
fn host(url: &str) -> &str {
    url.strip_prefix("http://").expect("peers speak plain HTTP")
}

fn credentials(requests: &[RecordedRequest]) -> Vec<Option<&str>> {
    requests.iter().map(|request| request.header("authorization")).collect()
}

#[tokio::test]
async fn an_input_is_fetched_with_the_runs_credential_and_gone_after_the_run() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("in/a cat.png", PNG, "image/png");
    let (_scheduler, worker, mut stream) = worker(&[]).await;
    let payload = json!({"file": {"ref": "in/a cat.png", "sha256": sha256(PNG)}});
    let found = output(&run(&mut stream, &api, "digest", payload).await);
    let expected = json!({"sha256": sha256(PNG), "size_bytes": PNG.len(), "mime_type": "image/png"});
    assert_eq!(found, expected);
    assert_eq!(worker.run_files(), 0);
    let [request] = &api.requests()[..] else { panic!("one request: {:?}", api.requests()) };
    assert_eq!(request.path, "/api/v1/file/in/a%20cat.png");
    assert_eq!(request.header("authorization"), Some("Bearer token-of-the-run"));
    assert_eq!(request.header("x-cozy-tenant-id"), Some("acme"));
}

/// Files wherever a payload can have them.
#[derive(Deserialize, JsonSchema)]
struct Album {
    cover: Asset,
    back: Option<Asset>,
    pages: Vec<Page>,
    by_name: BTreeMap<String, Vec<Asset>>,
    pair: (Asset, u8),
}

#[derive(Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Page {
    Picture { picture: Box<Asset> },
    Blank,
}

impl Album {
    fn contents(self) -> Result<Vec<String>, WorkerError> {
        let pages = self.pages.into_iter().filter_map(|page| match page {
            Page::Picture { picture } => Some(*picture),
            Page::Blank => None,
        });
        let named = self.by_name.into_values().flatten();
        let all = [self.cover].into_iter().chain(self.back).chain(pages).chain(named).chain([self.pair.0]);
        all.map(|asset| Ok(String::from_utf8_lossy(&asset.read(100)?).into_owned())).collect()
    }
}

#[tokio::test]
async fn files_are_there_wherever_they_nest() {
    let api = FakeFileApi::start(TOKEN).await;
    let names = ["cover", "back", "page", "name", "pair"];
    names.iter().for_each(|name| api.put(name, *name, "text/plain"));
    let scheduler = FakeScheduler::start().await;
    let directory = tempfile::tempdir().unwrap();
    let (place, runs) = (directory.path().to_string_lossy(), directory.path().join("runs"));
    let config = WorkerConfig::from_env(&Env::from_iter([("WORKER_RUN_DIR", &*place)])).unwrap();
    let settings = Embedded::settings(&scheduler.addr().to_string());
    let runtime = gen_worker::RuntimeConfig { run_dir: runs.clone(), ..settings };
    let album = Function::builder::<Album>("album", "tests")
        .asynchronous(|call: Call<Album>| async move { call.input.contents() })
        .unwrap();
    let functions = vec![album.clone()];
    let ports = tokio::task::spawn_blocking(move || assemble(&config, &functions)).await.unwrap().unwrap();
    let worker = Embedded::start(Worker::builder(runtime).function(album).ports(ports));
    let mut stream = scheduler.accept().await;
    let file = |name: &str| json!({"ref": name, "local_path": "/etc/passwd"});
    let mut payload = json!({
        "cover": file("cover"), "back": file("back"),
        "pages": [{"kind": "blank"}, {"kind": "picture", "picture": file("page")}],
        "by_name": {"a": [file("name")]}, "pair": [file("pair"), 1],
    });
    assert_eq!(output(&run(&mut stream, &api, "album", payload.clone()).await), json!(names));
    payload["by_name"]["a"] = json!([file("name"), file("gone")]);
    let result = run(&mut stream, &api, "album", payload).await;
    assert_eq!(refusal(&result), ("validation", "input gone not found"));
    assert_eq!(std::fs::read_dir(runs).unwrap().count(), 0, "nothing of either run is left");
    worker.leave(stream).await;
}

#[cfg(unix)]
#[tokio::test]
async fn what_a_run_has_on_disk_is_for_the_worker_alone() {
    use std::os::unix::fs::PermissionsExt;

    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let (_scheduler, worker, mut stream) = worker(&[("WORKER_KEEP_RUN_DIR", "1")]).await;
    output(&run(&mut stream, &api, "digest", json!({"file": {"ref": "cat.png"}})).await);
    for root in ["runs", "kept"].map(|folder| worker.directory().join(folder)) {
        let [inner] = &std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>()[..]
        else {
            panic!("one directory in {}", root.display())
        };
        for directory in [&root, inner] {
            let mode = std::fs::metadata(directory).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{}", directory.display());
        }
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_in_the_place_of_a_kept_file_is_not_followed() {
    use std::os::unix::fs::symlink;

    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let (_scheduler, worker, mut stream) = worker(&[]).await;
    let payload = json!({"file": {"ref": "cat.png"}});
    output(&run(&mut stream, &api, "digest", payload.clone()).await);
    let owner = std::fs::read_dir(worker.directory().join("kept")).unwrap().next().unwrap().unwrap().path();
    let (kept, victim) = (owner.join(sha256(PNG)), worker.directory().join("victim"));
    std::fs::rename(&kept, &victim).unwrap();
    symlink(&victim, &kept).unwrap();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
    std::fs::File::options().append(true).open(&victim).unwrap().set_modified(long_ago).unwrap();
    output(&run(&mut stream, &api, "digest", payload).await);
    assert_eq!(std::fs::metadata(&victim).unwrap().modified().unwrap(), long_ago);
    assert!(std::fs::symlink_metadata(&kept).unwrap().is_file(), "the file was fetched anew, and kept");
}

#[tokio::test]
async fn a_runs_directory_stays_if_it_is_to() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let (_scheduler, worker, mut stream) = worker(&[("WORKER_KEEP_RUN_DIR", "1")]).await;
    output(&run(&mut stream, &api, "digest", json!({"file": {"ref": "cat.png"}})).await);
    assert_eq!(worker.run_files(), 1);
}

#[tokio::test]
async fn what_a_killed_worker_left_goes_with_the_next_start() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let network = FaultProxy::start(host(&api.url()).parse().unwrap()).await;
    network.pause();
    let (_scheduler, mut killed, mut stream) = worker(&[]).await;
    stream
        .send(Msg::RunRequest(v1::TaskExecutionRequest {
            run_id: "r".into(),
            function_name: "digest".into(),
            input_payload: pack(&json!({"file": {"ref": "cat.png"}})).into(),
            file_base_url: format!("http://{}", network.addr()),
            file_token: TOKEN.into(),
            ..Default::default()
        }))
        .await;
    while network.accepted() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(killed.run_files(), 1);
    killed.kill().await;
    assert_eq!(killed.run_files(), 1);
    let runs = killed.directory().join("runs").to_string_lossy().into_owned();
    let (_scheduler, _next, _stream) = worker(&[("WORKER_RUN_DIR", &runs)]).await;
    assert_eq!(killed.run_files(), 0);
}

#[tokio::test]
async fn a_tenants_input_is_kept_for_its_next_run() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let (_scheduler, worker, mut stream) = worker(&[]).await;
    output(&run(&mut stream, &api, "digest", json!({"file": {"ref": "cat.png"}})).await);
    // What is sent from here on is wrong; what is kept is not, and is still asked for with the run's credential.
    api.fault_always("/api/v1/file/cat.png", Fault::Corrupt(3));
    let found = output(&run(&mut stream, &api, "digest", json!({"file": {"ref": "cat.png"}})).await);
    assert_eq!(found["sha256"], sha256(PNG));
    let result =
        run_at(&mut stream, (&api.url(), "stale"), "digest", json!({"file": {"ref": "cat.png"}})).await;
    assert_eq!((refusal(&result).0, worker.run_files()), ("auth", 0));
}

#[tokio::test]
async fn an_input_that_arrives_damaged_is_fetched_once_more() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let payload = json!({"file": {"ref": "cat.png", "sha256": sha256(PNG)}});
    api.fault_once("/api/v1/file/cat.png", [Fault::Corrupt(3); 3]);
    let result = run(&mut stream, &api, "digest", payload.clone()).await;
    assert_eq!((refusal(&result).0, result.retryable, api.requests().len()), ("retryable", true, 2));
    let found = output(&run(&mut stream, &api, "digest", payload).await);
    assert_eq!((&found["sha256"], api.requests().len()), (&json!(sha256(PNG)), 4));
}

#[tokio::test]
async fn an_input_that_cannot_be_had_fails_the_run() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("damaged", PNG, "image/png");
    api.fault_always("/api/v1/file/damaged", Fault::Corrupt(3));
    api.put("away", PNG, "image/png");
    api.fault_always("/api/v1/file/away", Fault::Status(503));
    let (_scheduler, worker, mut stream) = worker(&[("WORKER_DOWNLOAD_RETRIES", "2")]).await;
    let named = |reference: &str| json!({"file": {"ref": reference}});
    let result = run(&mut stream, &api, "digest", named("no/such.png")).await;
    assert_eq!(refusal(&result), ("validation", "input no/such.png not found"));
    let result = run_at(&mut stream, (&api.url(), "stale"), "digest", named("damaged")).await;
    assert_eq!(refusal(&result).0, "auth");
    for reference in ["damaged", "away"] {
        let result = run(&mut stream, &api, "digest", named(reference)).await;
        assert_eq!((refusal(&result).0, result.retryable), ("retryable", true), "{reference}");
    }
    for reference in ["../secrets", "file:///etc/passwd", ""] {
        let result = run(&mut stream, &api, "digest", named(reference)).await;
        assert_eq!(refusal(&result).0, "validation", "{reference}");
    }
    let wrong = json!({"file": {"ref": "damaged", "sha256": sha256(b"another")}});
    assert_eq!(refusal(&run(&mut stream, &api, "digest", wrong).await).0, "validation");
    assert_eq!(worker.run_files(), 0);
}

#[tokio::test]
async fn a_transfer_that_breaks_off_is_tried_again() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    api.fault_once("/api/v1/file/cat.png", [Fault::Truncate(5), Fault::Status(503)]);
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let found = output(&run(&mut stream, &api, "digest", json!({"file": {"ref": "cat.png"}})).await);
    assert_eq!((&found["sha256"], api.requests().len()), (&json!(sha256(PNG)), 3));
}

#[tokio::test]
async fn an_address_on_this_machine_is_refused_unless_the_operator_allows_it() {
    let web = FakeHub::start().await;
    web.put("/cat.png", PNG);
    let port = web.url().rsplit(':').next().map(str::to_owned).unwrap_or_default();
    let (_scheduler, _worker, mut stream) = worker(&[("FILE_API_TOKEN", "global-token")]).await;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
        let payload = json!({"file": {"ref": format!("http://{host}:{port}/cat.png?sig=1")}});
        let result = run_at(&mut stream, ("", ""), "digest", payload).await;
        assert_eq!(refusal(&result).0, "validation", "{host}");
    }
    assert!(web.requests().is_empty());

    let url = web.url();
    let allowed = [("WORKER_URL_ALLOW", host(&url)), ("FILE_API_TOKEN", "global-token")];
    let (_scheduler, _worker, mut stream) = worker(&allowed).await;
    let payload = json!({"file": {"ref": format!("{}/cat.png?sig=1", web.url())}});
    let found = output(&run_at(&mut stream, ("", TOKEN), "digest", payload).await);
    assert_eq!((&found["sha256"], &found["mime_type"]), (&json!(sha256(PNG)), &json!("image/png")));
    let [request] = &web.requests()[..] else { panic!("one request: {:?}", web.requests()) };
    assert!(!request.has_authorization() && request.header("x-cozy-tenant-id").is_none(), "{request:?}");
}

#[tokio::test]
async fn local_path_from_a_payload_is_ignored() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("cat.png", PNG, "image/png");
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let named = |reference: &str| json!({"file": {"ref": reference, "local_path": "/etc/passwd"}});
    let result = run(&mut stream, &api, "digest", named("no/such.png")).await;
    assert_eq!(refusal(&result).0, "validation");
    let found = output(&run(&mut stream, &api, "digest", named("cat.png")).await);
    assert_eq!(found["sha256"], sha256(PNG));
}

#[tokio::test]
async fn the_workers_token_goes_to_the_workers_file_api_only() {
    let (own, foreign) = (FakeFileApi::start("global-token").await, FakeFileApi::start(TOKEN).await);
    own.put("cat.png", PNG, "image/png");
    let url = own.url();
    let settings = [("FILE_API_BASE_URL", url.as_str()), ("FILE_API_TOKEN", "global-token")];
    let (_scheduler, _worker, mut stream) = worker(&settings).await;
    let digest = json!({"file": {"ref": "cat.png"}});
    output(&run_at(&mut stream, ("", ""), "digest", digest.clone()).await);
    for (function, payload) in [("digest", digest), ("save", json!({"name": "x", "size": 1}))] {
        let result = run_at(&mut stream, (&foreign.url(), ""), function, payload).await;
        assert_eq!(refusal(&result).0, "auth");
    }
    output(&run(&mut stream, &foreign, "save", json!({"name": "x", "size": 1})).await);
    assert_eq!(credentials(&own.requests()), [Some("Bearer global-token")]);
    assert_eq!(credentials(&foreign.requests()), [None, None, Some("Bearer token-of-the-run")]);
}

#[tokio::test]
async fn a_saved_file_is_stored_and_described() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let payload = json!({"name": "a b/c.bin", "size": 70_000});
    let saved = output(&run(&mut stream, &api, "save", payload).await);
    let (reference, content) = ("runs/r/outputs/a b/c.bin", pattern(70_000));
    assert_eq!(api.file(reference).expect("it is stored"), content);
    let expected = json!({
        "ref": reference, "tenant_id": "acme", "mime_type": "application/octet-stream",
        "size_bytes": 70_000, "sha256": sha256(&content),
    });
    assert_eq!(saved["file"], expected);
    let [put] = &api.requests()[..] else { panic!("one request: {:?}", api.requests()) };
    assert_eq!((put.method.as_str(), put.path.as_str()), ("PUT", "/api/v1/file/runs/r/outputs/a%20b/c.bin"));
    assert_eq!(put.header("x-cozy-tenant-id"), Some("acme"));
}

#[tokio::test]
async fn a_file_is_created_once_and_only_under_the_runs_prefix() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, _worker, mut stream) = worker(&[]).await;
    let create = |size: usize| json!({"name": "x", "size": size, "create": true});
    output(&run(&mut stream, &api, "save", create(1)).await);
    let again = run(&mut stream, &api, "save", create(2)).await;
    assert_eq!(refusal(&again), ("validation", "output path already exists"));
    assert_eq!(api.file("runs/r/outputs/x").expect("the first is there").len(), 1);
    let asked = api.requests().len();
    for name in ["../x", "a/../../x", "a//b", ".", ""] {
        let result = run(&mut stream, &api, "save", json!({"name": name, "size": 1})).await;
        assert_eq!(refusal(&result).0, "validation", "{name}");
    }
    assert_eq!(api.requests().len(), asked);
}

#[tokio::test]
async fn a_file_larger_than_allowed_is_refused() {
    let api = FakeFileApi::start(TOKEN).await;
    api.put("large", vec![0; 101], "image/png");
    let limits = [("WORKER_MAX_INPUT_FILE_BYTES", "100"), ("WORKER_MAX_OUTPUT_FILE_BYTES", "100")];
    let (_scheduler, _worker, mut stream) = worker(&limits).await;
    let read = run(&mut stream, &api, "digest", json!({"file": {"ref": "large"}})).await;
    assert_eq!(refusal(&read).0, "validation");
    let saved = run(&mut stream, &api, "save", json!({"name": "x", "size": 101})).await;
    assert_eq!(refusal(&saved).0, "validation");
    output(&run(&mut stream, &api, "save", json!({"name": "x", "size": 100})).await);
}

/// A worker that may reach this file API by payload's URLs, and whose own credentials would show there.
async fn worker_beside(api: &FakeFileApi) -> (FakeScheduler, WorkerProcess, WorkerStream) {
    let url = api.url();
    worker(&[
        ("WORKER_URL_ALLOW", host(&url)),
        ("FILE_API_TOKEN", "global-token"),
        ("WORKER_DOWNLOAD_RETRIES", "2"),
    ])
    .await
}

#[tokio::test]
async fn a_missing_output_fails_the_run() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, _worker, mut stream) = worker_beside(&api).await;
    for path in ["/api/v1/file/runs/r/outputs/x", "/put/k"] {
        api.fault_always(path, Fault::Status(500));
    }
    let saved = run(&mut stream, &api, "save", json!({"name": "x", "size": 9})).await;
    assert_eq!((refusal(&saved).0, saved.retryable), ("retryable", true));
    for (function, payload) in [("raw", json!({"size": 9})), ("echo", json!({"text": "x"}))] {
        let mut payload = payload;
        payload["output_upload"] = json!({"put_url": api.put_url("k")});
        let result = run(&mut stream, &api, function, payload).await;
        assert_eq!((refusal(&result).0, result.retryable), ("retryable", true), "{function}");
    }
    assert!(api.file("runs/r/outputs/x").is_none() && api.uploaded("k").is_none());
}

#[tokio::test]
async fn an_output_goes_where_the_payload_says() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, _worker, mut stream) = worker_beside(&api).await;
    let target = |key: &str| format!("{}?X-Amz-Signature=abc", api.put_url(key));
    let raw = json!({
        "size": 300_000, "content_type": "image/x",
        "output_upload": {"put_url": target("raw"), "headers": {"X-Amz-Acl": "private"}},
    });
    let echo = json!({
        "text": "hi",
        "output_upload": {"put_url": target("echo"), "public_url": "https://cdn.example/echo", "headers": null},
    });
    let cases = [
        ("raw", raw, pattern(300_000), "image/x", api.put_url("raw")),
        (
            "echo",
            echo,
            pack(&json!({"text": "hi"})),
            "application/msgpack",
            "https://cdn.example/echo".to_owned(),
        ),
    ];
    for (function, payload, content, content_type, url) in cases {
        let mut told = output(&run(&mut stream, &api, function, payload).await);
        assert_eq!(api.uploaded(function).expect("it is stored"), content);
        assert!(told["etag"].take().is_string());
        let expected = json!({
            "url": url, "size_bytes": content.len(), "sha256": sha256(&content),
            "content_type": content_type, "etag": null,
        });
        assert_eq!(told, expected);
    }
    let requests = api.requests();
    assert_eq!(credentials(&requests), [None, None]);
    assert_eq!(requests[0].path, "/put/raw?X-Amz-Signature=abc");
    assert_eq!(requests[0].header("x-amz-acl"), Some("private"));
    assert!(requests.iter().all(|request| request.header("x-cozy-tenant-id").is_none()));
}

#[tokio::test]
async fn an_output_upload_that_cannot_be_used_is_refused_before_the_run() {
    let api = FakeFileApi::start(TOKEN).await;
    let (_scheduler, _worker, mut stream) = worker_beside(&api).await;
    let put_url = api.put_url("k");
    for (output_upload, named) in [
        (json!({"put_url": put_url, "url": "x"}), "`output_upload.url`"),
        (json!({"s3": {"bucket": "b"}}), "`output_upload.s3.region`"),
        (json!({}), "`output_upload.put_url`"),
        (json!({"put_url": "http://127.0.0.1:1/k"}), "`output_upload.put_url`"),
        (json!({"put_url": put_url, "headers": {"Host": "x"}}), "`output_upload.headers`"),
        (json!("here"), "`output_upload`"),
    ] {
        let payload = json!({"size": 9, "output_upload": output_upload});
        let result = run(&mut stream, &api, "raw", payload).await;
        let (kind, message) = refusal(&result);
        assert!(kind == "validation" && message.contains(named), "{kind}: {message}");
    }
    let streams = json!({"n": 1, "output_upload": {"put_url": put_url}});
    assert_eq!(refusal(&run(&mut stream, &api, "count", streams).await).0, "validation");
    assert!(api.requests().is_empty());
}
