//! Models of many files: at the Cozy hub and at Hugging Face.

use serde_json::json;

use super::*;

/// Serves these files as `org/<repo>` at tag `latest`, whose snapshot has this name.
pub(super) fn serve(server: &FileServer, repo: &str, snapshot: &str, files: &[(&str, &[u8])]) {
    let entries: Vec<_> = files
        .iter()
        .map(|(path, content)| {
            let at = format!("/files/{repo}/{snapshot}/{path}");
            server.put(&at, content.to_vec());
            let blake3 = Digest::of(Algorithm::Blake3, content).hex();
            json!({"path": path, "url": server.url(&at), "size_bytes": content.len(), "blake3": blake3})
        })
        .collect();
    let api = format!("/api/v1/repos/org/{repo}");
    server.put(&format!("{api}/resolve?tag=latest"), json!({"digest": snapshot}).to_string());
    let manifest = json!({"snapshot_digest": snapshot, "files": entries});
    server.put(&format!("{api}/snapshots/{snapshot}/manifest"), manifest.to_string());
}

async fn bench(api: HubApi) -> Bench {
    let server = FileServer::with_headers(b"<html>", &[], &[("etag", "\"v1\"")], 1000).await;
    let mut bench = Bench::on(server);
    bench.hub = hub_with(&bench, api);
    bench
}

fn hub_with(bench: &Bench, api: HubApi) -> Hub {
    let config = HubConfig { hub_api: api, ..config(bench.cache.path(), &bench.server) };
    Hub::new(config, client(&[]))
}

/// Takes what references led to as old.
fn age_references(cache: &Path) {
    for entry in fs::read_dir(cache.join("refs")).unwrap() {
        let path = entry.unwrap().path();
        let mut led: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        led["asked"] = json!(1);
        fs::write(path, led.to_string()).unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_is_all_its_files_and_its_objects() {
    let bench = bench(HubApi::Auto).await;
    serve(&bench.server, "repo", "snap", &[("model_index.json", b"{}")]);
    let unet = b"unet".as_slice();
    bench.server.put("/cdn/unet?sig=1", unet);
    let entry = json!({
        "path": "model.onnx", "url": "/cdn/unet?sig=1", "size": 4,
        "blake3_hex": Digest::of(Algorithm::Blake3, unet).hex(),
    });
    bench.server.put("/api/v1/objects/obj/manifest", json!({"digest": "obj", "files": [entry]}).to_string());
    let path = "/api/v1/repos/org/repo/snapshots/snap/manifest";
    let files = json!([{
        "path": "model_index.json", "url": bench.server.url("/files/repo/snap/model_index.json"),
        "size_bytes": 2, "blake3": Digest::of(Algorithm::Blake3, b"{}").hex(),
    }]);
    let manifest = json!({"digest": "snap", "objects": {"unet": "obj"}, "root_files": files});
    bench.server.put(path, manifest.to_string());

    let local = bench.ensure("org/repo").await.unwrap();
    assert_eq!(local.files.keys().collect::<Vec<_>>(), ["model_index.json", "unet/model.onnx"]);
    assert_eq!((read(&local, "unet/model.onnx"), local.size_bytes), (unet.to_vec(), 6));
    let tokens = bench.server.paths().into_iter().zip(bench.server.seen("authorization"));
    for (path, token) in tokens {
        assert_eq!(token == "Bearer hub-token", path.starts_with("/api/"), "{path} {token}");
    }
    let asked = bench.server.paths().len();
    bench.ensure("cozy:org/repo:latest").await.unwrap();
    assert_eq!(bench.server.paths().len(), asked, "where a tag leads is known for a while");
}

#[tokio::test]
async fn a_tag_that_moved_leads_to_the_new_files_and_shares_the_old() {
    let bench = bench(HubApi::Snapshots).await;
    serve(&bench.server, "repo", "one", &[("same.onnx", b"same"), ("m.onnx", b"old")]);
    let old = bench.ensure("org/repo").await.unwrap();
    serve(&bench.server, "repo", "two", &[("same.onnx", b"same"), ("m.onnx", b"new")]);
    age_references(bench.cache.path());
    let new = bench.ensure("org/repo").await.unwrap();
    assert_eq!((read(&old, "m.onnx"), read(&new, "m.onnx")), (b"old".to_vec(), b"new".to_vec()));
    let of_same = bench.server.paths().into_iter().filter(|path| path.ends_with("same.onnx")).count();
    assert_eq!((of_same, bench.published()), (1, 2));
}

#[tokio::test]
async fn a_hub_that_is_away_does_not_take_its_models_along() {
    let bench = bench(HubApi::Snapshots).await;
    serve(&bench.server, "repo", "one", &[("m.onnx", b"old")]);
    bench.ensure("org/repo").await.unwrap();
    age_references(bench.cache.path());
    bench.server.answer(&[Answer::Status(503); 3]);
    assert_eq!(read(&bench.ensure("org/repo").await.unwrap(), "m.onnx"), b"old");
}

#[tokio::test]
async fn a_page_of_something_in_between_is_not_the_hubs_answer() {
    let bench = bench(HubApi::Snapshots).await;
    serve(&bench.server, "repo", "one", &[("m.onnx", b"abc")]);
    bench.server.answer(&[Answer::Page, Answer::Page]);
    assert_eq!(read(&bench.ensure("org/repo").await.unwrap(), "m.onnx"), b"abc");
    bench.server.answer(&[Answer::Page; 3]);
    assert_eq!(bench.ensure("org/other").await.unwrap_err().kind, FailureKind::Retryable);
    bench.server.answer(&[Answer::Said(404)]);
    assert_eq!(bench.ensure("org/other").await.unwrap_err().kind, FailureKind::Validation);
    bench.server.answer(&[Answer::Said(409)]);
    let failure = bench.ensure("org/other").await.unwrap_err();
    assert_eq!(
        failure.safe_message,
        "the source of model cozy:org/other:latest answered 409: no artifact fits"
    );
}

#[tokio::test]
async fn a_hub_without_the_api_serves_files() {
    for (answer, kind) in
        [(Answer::Page, "page"), (Answer::Status(404), "status"), (Answer::Said(404), "said")]
    {
        let bench = bench(HubApi::Auto).await;
        bench.server.answer(&[answer, answer]);
        let local = bench.ensure("org/m.onnx:v1").await.unwrap();
        assert_eq!(read(&local, "m.onnx"), b"<html>", "{kind}");
        assert_eq!(
            bench.server.paths(),
            ["/api/v1/repos/org/m.onnx/resolve", "/models/org/m.onnx/manifest", "/org/m.onnx:v1"]
        );
    }
    // One that has shown that it has the API is believed to have it.
    let bench = bench(HubApi::Auto).await;
    serve(&bench.server, "repo", "one", &[("m.onnx", b"abc")]);
    bench.ensure("org/repo").await.unwrap();
    bench.server.answer(&[Answer::Page; 3]);
    assert_eq!(bench.ensure("org/other").await.unwrap_err().kind, FailureKind::Retryable);
}

#[tokio::test]
async fn an_older_hub_lists_a_models_files() {
    let bench = bench(HubApi::Auto).await;
    bench.server.answer(&[Answer::Page]);
    let files = json!({"files": [{"path": "a/m.onnx", "size": 3}]});
    bench.server.put("/models/org/repo/manifest", files.to_string());
    bench.server.put("/models/org/repo/files/a/m.onnx", "abc");
    let local = bench.ensure("org/repo").await.unwrap();
    assert_eq!(read(&local, "a/m.onnx"), b"abc");
    assert_eq!(bench.server.seen("authorization"), ["Bearer hub-token"; 3]);
}

#[tokio::test]
async fn the_hubs_credential_stays_with_it_wherever_its_files_are() {
    let bench = bench(HubApi::Auto).await;
    let elsewhere = FileServer::with_headers(&content(), &[], &[("etag", "\"e\"")], 1000).await;
    let config = HubConfig { range_bytes: 1_000_000, ..config(bench.cache.path(), &bench.server) };
    let hub = Hub::new(HubConfig { hub_api: HubApi::Auto, ..config }, client(&[]));
    bench.server.answer(&[Answer::Page]);
    let files = json!({"files": [
        {"path": "listed.onnx", "url": elsewhere.url("/listed.onnx"), "size": 3_000_000},
        {"path": "led.onnx", "size": 3_000_000},
    ]});
    bench.server.put("/models/org/repo/manifest", files.to_string());
    bench.server.redirect("/models/org/repo/files/led.onnx", &elsewhere.url("/led.onnx"));
    let local = hub.ensure(&model("org/repo"), bench.events.clone()).await.unwrap();
    assert!(["listed.onnx", "led.onnx"].iter().all(|name| read(&local, name) == content()));
    assert!(bench.server.seen("authorization").iter().all(|token| token == "Bearer hub-token"));
    // Each in three pieces, of which the later ones go straight to where the first was led.
    assert_eq!(elsewhere.seen("authorization"), [""; 6]);
    assert_eq!(bench.server.paths().len(), 3);
}

#[tokio::test]
async fn an_address_that_has_expired_is_asked_for_anew() {
    // Stores say it with 403, and with 400 where a credential behind the address has expired.
    for status in [403, 400] {
        let bench = bench(HubApi::Snapshots).await;
        serve(&bench.server, "repo", "one", &[("m.onnx", b"abc")]);
        bench.server.answer(&[Answer::Good, Answer::Good, Answer::Status(status)]);
        assert_eq!(read(&bench.ensure("org/repo").await.unwrap(), "m.onnx"), b"abc");
        let paths = bench.server.paths();
        assert_eq!((paths.len(), &paths[0], &paths[2]), (6, &paths[3], &paths[5]));

        serve(&bench.server, "closed", "one", &[("m.onnx", b"other")]);
        let refused = [Answer::Good, Answer::Good, Answer::Status(status)];
        bench.server.answer(&[refused, refused].concat());
        let failure = bench.ensure("org/closed").await.unwrap_err();
        assert_eq!((failure.kind, bench.server.paths().len()), (FailureKind::Auth, 12));
        assert!(failure.safe_message.contains(&format!("({status})")), "{failure:?}");
    }
}

#[tokio::test]
async fn a_list_that_could_harm_is_refused() {
    let digest = Digest::of(Algorithm::Blake3, b"abc").hex();
    let file = json!({"path": "m", "url": "/m", "size": 3, "blake3": digest});
    for (manifest, reason) in [
        (json!({"files": [{"path": "../m", "url": "/m", "blake3": digest}]}), "a way out"),
        (json!({"files": [file], "objects": {"..": "obj"}}), "an object's way out"),
        (json!({"files": [file], "objects": {"a": "../../x"}}), "a digest that is a path"),
        (json!({"files": [{"path": "m", "url": "/m", "blake3": ""}]}), "no digest"),
        (json!({"files": [{"path": "m", "blake3": digest}]}), "no address"),
        (json!({"files": [{"path": "m", "url": "file:///etc/passwd", "blake3": digest}]}), "a file"),
        (json!({"files": [file, file]}), "twice"),
        (json!({"files": []}), "nothing"),
        (json!({"digest": "another", "files": [file]}), "another's"),
    ] {
        let bench = bench(HubApi::Snapshots).await;
        serve(&bench.server, "repo", "one", &[]);
        bench.server.put("/api/v1/repos/org/repo/snapshots/one/manifest", manifest.to_string());
        let failure = bench.ensure("org/repo").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Retryable, "{reason}");
        assert!(failure.safe_message.contains("file list"), "{reason}: {failure:?}");
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A pipeline at Hugging Face, whose large file is elsewhere.
async fn hugging_face(bench: &Bench, elsewhere: &FileServer) {
    let unet = b"the unet".as_slice();
    let sha256 = Digest::of(Algorithm::Sha256, unet).hex();
    let siblings = json!([
        {"rfilename": "README.md", "size": 3},
        {"rfilename": "model_index.json", "size": 44},
        {"rfilename": "unet/config.json", "size": 2},
        {"rfilename": "unet/model.onnx", "size": 8, "lfs": {"sha256": sha256, "size": 8, "pointerSize": 1}},
        {"rfilename": "unet/pytorch_model.bin", "size": 3},
    ]);
    let page = json!({"sha": COMMIT, "siblings": siblings}).to_string();
    bench.server.put("/api/models/org/pipe/revision/main?blobs=true", page.clone());
    bench.server.put(&format!("/api/models/org/pipe/revision/{COMMIT}?blobs=true"), page);
    let at = format!("/org/pipe/resolve/{COMMIT}");
    let index = r#"{"_class_name": "P", "unet": ["onnx", "U"]}"#;
    bench.server.put(&format!("{at}/model_index.json"), format!("{index} "));
    bench.server.put(&format!("{at}/unet/config.json"), "{}");
    bench.server.put(&format!("{at}/unet/pytorch_model.bin"), "bin");
    elsewhere.put("/blob?sig=1", unet);
    bench.server.redirect(&format!("{at}/unet/model.onnx"), &elsewhere.url("/blob?sig=1"));
}

#[tokio::test]
async fn a_pipeline_comes_from_hugging_face_at_one_commit() {
    let bench = bench(HubApi::Auto).await;
    let elsewhere = FileServer::with_headers(b"", &[], &[("etag", "\"e\"")], 1000).await;
    hugging_face(&bench, &elsewhere).await;
    let local = bench.ensure("hf:org/pipe").await.unwrap();
    assert_eq!(
        local.files.keys().collect::<Vec<_>>(),
        ["model_index.json", "unet/config.json", "unet/model.onnx"]
    );
    assert_eq!(read(&local, "unet/model.onnx"), b"the unet");
    assert!(bench.server.seen("authorization").iter().all(|token| token == "Bearer hf-token"));
    assert_eq!(elsewhere.seen("authorization"), [""]);
    assert_eq!(bench.hub.on_disk(), ["hf:org/pipe"]);

    // The same commit by its name: another reference, and no file is fetched again.
    let asked = elsewhere.paths().len();
    bench.ensure(&format!("hf:org/pipe@{COMMIT}")).await.unwrap();
    assert_eq!((elsewhere.paths().len(), bench.published()), (asked, 1));
}

#[tokio::test]
async fn a_large_file_that_is_not_what_its_digest_says_is_refused() {
    let bench = bench(HubApi::Auto).await;
    let elsewhere = FileServer::with_headers(b"", &[], &[("etag", "\"e\"")], 1000).await;
    hugging_face(&bench, &elsewhere).await;
    elsewhere.put("/blob?sig=1", "the evil");
    let failure = bench.ensure("hf:org/pipe").await.unwrap_err();
    assert_eq!((failure.kind, elsewhere.paths().len(), bench.published()), (FailureKind::Retryable, 2, 0));
}

#[tokio::test]
async fn what_can_run_code_is_refused_by_name() {
    let bench = bench(HubApi::Auto).await;
    let elsewhere = FileServer::with_headers(b"", &[], &[], 1000).await;
    hugging_face(&bench, &elsewhere).await;
    for (text, message) in [
        ("hf:org/pipe#**.bin", "WORKER_ALLOW_PICKLE=1"),
        ("hf:org/pipe#*.gguf", "#glob"),
        ("hf:org/gone", "file list"),
    ] {
        bench.server.put("/api/models/org/gone/revision/main?blobs=true", "{}");
        let failure = bench.ensure(text).await.unwrap_err();
        assert!(failure.safe_message.contains(message), "{text}: {failure:?}");
    }
    let config = HubConfig { allow_pickle: true, ..config(bench.cache.path(), &bench.server) };
    let hub = Hub::new(config, client(&[]));
    let local = hub.ensure(&model("hf:org/pipe#**.bin"), bench.events.clone()).await.unwrap();
    assert_eq!(read(&local, "unet/pytorch_model.bin"), b"bin");
}

#[tokio::test]
async fn what_may_run_code_is_there_as_soon_as_it_is_allowed_and_not_after() {
    let bench = bench(HubApi::Auto).await;
    let elsewhere = FileServer::with_headers(b"", &[], &[("etag", "\"e\"")], 1000).await;
    hugging_face(&bench, &elsewhere).await;
    let safe = ["unet/config.json", "unet/model.onnx"];
    let all = ["unet/config.json", "unet/model.onnx", "unet/pytorch_model.bin"];
    let commit = format!("hf:org/pipe@{COMMIT}#unet/*");
    for (allow_pickle, files) in [(false, &safe[..]), (true, &all), (false, &safe)] {
        let config = HubConfig { allow_pickle, ..config(bench.cache.path(), &bench.server) };
        let hub = Hub::new(config, client(&[]));
        for text in ["hf:org/pipe#unet/*", &commit] {
            let local = hub.ensure(&model(text), bench.events.clone()).await.unwrap();
            assert_eq!(local.files.keys().collect::<Vec<_>>(), files, "{text}");
        }
    }
    assert_eq!((elsewhere.paths().len(), bench.published()), (1, 2));
}

/// A hub whose credentials lie in a file, and a server that refuses the first requests and waits before it answers.
async fn renewing(refusals: usize) -> (Bench, std::path::PathBuf) {
    let refused = vec![Answer::Said(401); refusals];
    let server = FileServer::with_headers(b"content", &refused, &[("etag", "\"v1\"")], 0).await;
    let mut bench = Bench::on(server);
    let file = bench.cache.path().join("token");
    fs::write(&file, "first").unwrap();
    let (hub_token_file, hf_token_file) = (Some(file.clone()), Some(file.clone()));
    let config = config(bench.cache.path(), &bench.server);
    let config = HubConfig { hub_token: None, hf_token: None, hub_token_file, hf_token_file, ..config };
    bench.hub = Hub::new(config, client(&[]));
    (bench, file)
}

#[tokio::test]
async fn a_credential_that_was_renewed_is_tried_once_and_one_that_was_not_never() {
    for (text, refusals, renewed, tokens, kind) in [
        ("org/m", 1, "second", &["Bearer first", "Bearer second"][..], None),
        ("org/m", 1, "first", &["Bearer first"], Some(FailureKind::Auth)),
        ("org/m", 9, "second", &["Bearer first", "Bearer second"], Some(FailureKind::Auth)),
        // Its page is no list of files, but it is asked for.
        ("hf:org/m", 1, "second", &["Bearer first", "Bearer second"], Some(FailureKind::Retryable)),
    ] {
        let (bench, file) = renewing(refusals).await;
        bench.server.put("/api/models/org/m/revision/main?blobs=true", "{}");
        let renew = async {
            super::until(|| bench.server.paths().len() == 1).await;
            fs::write(&file, renewed).unwrap();
            bench.server.open();
        };
        let (brought, ()) = tokio::join!(bench.ensure(text), renew);
        assert_eq!(brought.err().map(|failure| failure.kind), kind, "{text} {renewed}");
        assert_eq!(bench.server.seen("authorization"), tokens, "{text} {renewed}");
    }
}

#[tokio::test]
async fn a_file_without_a_credential_is_named_by_its_setting() {
    let (bench, file) = renewing(0).await;
    fs::remove_file(file).unwrap();
    let failure = bench.ensure("hf:org/m").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Auth);
    assert_eq!(failure.safe_message, "no token can be read from the file that HF_TOKEN_PATH names");
    assert!(bench.server.paths().is_empty());
}
