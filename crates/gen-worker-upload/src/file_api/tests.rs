//! The file API against a store on loopback.

use axum::body::Bytes;
use futures_util::FutureExt;
use gen_worker_core::{ByteLimit, FailureKind, OutputBody, RunId};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::*;
use crate::testing::{Heard, Store, answer, bytes, client, config, hasty, transfers, watch};

fn scope() -> RunScope {
    RunScope {
        run_id: RunId::parse("r1").unwrap(),
        tenant_id: None,
        file_base_url: None,
        file_token: None,
        trace: None,
    }
}

fn files(base: Option<&str>) -> FileApi {
    let config = UploadConfig { file_api_url: base.map(|base| base.parse().unwrap()), ..config() };
    FileApi::new(config, transfers())
}

fn request(name: &str, data: impl Into<Bytes>, mode: SaveMode) -> SaveRequest {
    let reference = format!("runs/r1/outputs/{name}");
    SaveRequest { reference, body: OutputBody::Bytes(data.into()), mode }
}

async fn save(store: &Store, request: SaveRequest) -> Result<Asset, JobFailure> {
    files(Some(&store.url)).save(&scope(), request, &watch().0).await
}

/// The authorization and tenant that the store heard from this scope.
async fn heard_of(api: &FileApi, scope: &RunScope, store: &Store) -> Heard {
    api.save(scope, request("x", "data", SaveMode::Overwrite), &watch().0).await.unwrap();
    store.heard().pop().unwrap()
}

#[tokio::test]
async fn a_saved_file_is_put_whole_with_its_digest() {
    let store = Store::answering([]).await;
    let data = &b"\x89PNG\r\n\x1a\n and more"[..];
    let api = files(Some(&format!("{}/base/?q=1", store.url)));
    let asset = api.save(&scope(), request("a b.png", data, SaveMode::Overwrite), &watch().0).await.unwrap();

    let sha256 = Digest::of(Algorithm::Sha256, data).hex();
    let heard = store.heard().pop().unwrap();
    assert_eq!((heard.method.as_str(), &heard.body[..]), ("PUT", data));
    assert_eq!(heard.uri, "/base/api/v1/file/runs/r1/outputs/a%20b.png");
    assert_eq!(heard.header("content-type"), "image/png");
    assert_eq!(heard.header("content-length"), data.len().to_string());
    assert_eq!(heard.header("x-cozy-sha256"), sha256);
    assert_eq!(heard.header("authorization"), "Bearer global-token");

    assert_eq!(asset.reference(), "runs/r1/outputs/a b.png");
    assert_eq!(asset.size_bytes(), Some(data.len() as u64));
    assert_eq!((asset.sha256(), asset.mime_type()), (Some(sha256.as_str()), Some("image/png")));
    assert_eq!(serde_json::to_value(&asset).unwrap()["tenant_id"], "worker-tenant");
}

#[tokio::test]
async fn the_runs_place_hears_the_runs_token_only() {
    let (global, own) = (Store::answering([]).await, Store::answering([]).await);
    let api = files(Some(&global.url));
    let mut scope = scope();

    scope.file_token = Some("run-token".into());
    assert_eq!(heard_of(&api, &scope, &global).await.header("authorization"), "Bearer run-token");
    scope.file_base_url = Some(own.url.parse().unwrap());
    assert_eq!(heard_of(&api, &scope, &own).await.header("authorization"), "Bearer run-token");
    scope.file_token = None;
    assert_eq!(heard_of(&api, &scope, &own).await.header("authorization"), "");
    assert_eq!(global.heard().len(), 1);
}

#[tokio::test]
async fn the_runs_tenant_wins() {
    let store = Store::answering([]).await;
    let api = files(Some(&store.url));
    let mut scope = scope();
    assert_eq!(heard_of(&api, &scope, &store).await.header("x-cozy-tenant-id"), "worker-tenant");
    scope.tenant_id = Some(TenantId::parse("run-tenant").unwrap());
    assert_eq!(heard_of(&api, &scope, &store).await.header("x-cozy-tenant-id"), "run-tenant");
}

#[tokio::test]
async fn nothing_is_sent_of_what_is_refused_here() {
    let store = Store::answering([]).await;
    let escaped = save(&store, request("../../r2/outputs/x", "data", SaveMode::Overwrite)).await;
    assert_eq!(escaped.unwrap_err().kind, FailureKind::Validation);
    let large = save(&store, request("x", bytes((8 << 20) + 1), SaveMode::Overwrite)).await.unwrap_err();
    assert_eq!(large.kind, FailureKind::Validation);
    assert!(large.safe_message.starts_with("output file too large"), "{large:?}");
    assert!(store.heard().is_empty());

    let nowhere =
        files(None).save(&scope(), request("x", "data", SaveMode::Overwrite), &watch().0).await.unwrap_err();
    assert_eq!(nowhere.kind, FailureKind::Internal);
}

#[tokio::test]
async fn a_file_is_streamed_and_sent_whole_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("clip.mp4");
    let data = bytes(3 << 20);
    std::fs::write(&path, &data).unwrap();

    let store = Store::answering([answer(503, "")]).await;
    let reference = "runs/r1/outputs/clip.mp4".to_owned();
    let request = SaveRequest { reference, body: OutputBody::File(path), mode: SaveMode::Overwrite };
    let asset = save(&store, request).await.unwrap();
    let heard = store.heard();
    assert_eq!(heard.len(), 2);
    assert!(heard.iter().all(|heard| heard.body == data && heard.header("content-type") == "video/mp4"));
    assert_eq!(asset.size_bytes(), Some(data.len() as u64));
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_is_not_stored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    std::fs::write(&path, "data").unwrap();
    let changed = path.clone();
    let store = Store::deciding(move |heard| {
        std::fs::write(&changed, "atad").unwrap();
        std::future::ready(answer(if heard.body == "data" { 503 } else { 200 }, "")).boxed()
    })
    .await;
    let body = OutputBody::File(path);
    let request = SaveRequest { body, ..request("x", "", SaveMode::Overwrite) };
    assert_eq!(save(&store, request).await.unwrap_err().kind, FailureKind::Retryable);
    assert_eq!(store.heard().len(), 1);
}

#[tokio::test]
async fn a_reset_connection_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let data = bytes(1 << 20);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        first.read_exact(&mut [0; 1000]).await.unwrap();
        // Closing with unread bytes resets the connection.
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        while !ends_with_body(&heard) {
            second.read_buf(&mut heard).await.unwrap();
        }
        second.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        heard
    });
    files(Some(&base))
        .save(&scope(), request("x", data.clone(), SaveMode::Overwrite), &watch().0)
        .await
        .unwrap();
    let heard = server.join_next().await.unwrap().unwrap();
    assert!(heard.ends_with(&data));
}

fn ends_with_body(heard: &[u8]) -> bool {
    let head = heard.windows(4).position(|window| window == b"\r\n\r\n");
    head.is_some_and(|head| heard.len() >= head + 4 + (1 << 20))
}

#[tokio::test]
async fn a_missing_output_fails_the_run() {
    let store = Store::answering([answer(500, ""), answer(500, ""), answer(500, "")]).await;
    let failure = save(&store, request("x", "data", SaveMode::Overwrite)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Retryable);
    assert_eq!(failure.safe_message, "file save failed (500)");
    assert_eq!(store.heard().len(), 3);
}

#[tokio::test]
async fn statuses_are_told_apart() {
    let (put, post) = (SaveMode::Overwrite, SaveMode::CreateOnly);
    for (mode, status, kind, message) in [
        (put, 401, FailureKind::Auth, "file save unauthorized (401): check file_token validity"),
        (post, 403, FailureKind::Auth, "file save unauthorized (403): check file_token validity"),
        (post, 409, FailureKind::Validation, "output path already exists"),
        (put, 409, FailureKind::Internal, "file save failed (409)"),
        (put, 404, FailureKind::Internal, "file save failed (404)"),
        (put, 302, FailureKind::Internal, "file save failed (302)"),
        (post, 503, FailureKind::Retryable, "file save failed (503)"),
    ] {
        let store = Store::answering([answer(status, "")]).await;
        let failure = save(&store, request("x", "data", mode)).await.unwrap_err();
        assert_eq!((failure.kind, failure.safe_message.as_str()), (kind, message));
        assert_eq!(store.heard().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn creating_is_tried_again_only_if_nothing_was_sent() {
    let store = Store::answering([]).await;
    save(&store, request("x", "data", SaveMode::CreateOnly)).await.unwrap();
    assert_eq!(store.heard().pop().unwrap().method, "POST");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let api = files(Some(&base));
    let (scope, (watch, _)) = (scope(), watch());
    let mut save = std::pin::pin!(api.save(&scope, request("x", "data", SaveMode::CreateOnly), &watch));
    let accepted = tokio::select! {
        accepted = listener.accept() => accepted.unwrap().0,
        _ = &mut save => panic!("nobody has answered"),
    };
    drop(accepted);
    assert_eq!(save.await.unwrap_err().kind, FailureKind::Retryable);
    tokio::task::yield_now().await;
    tokio::select! {
        biased;
        _ = listener.accept() => panic!("it was tried again"),
        () = std::future::ready(()) => {}
    }

    drop(listener);
    let unreachable = client().request(Method::POST, base.parse().unwrap(), Trust::Operator);
    assert!(unsent(&unreachable.send().await.unwrap_err()).is_some());
}

#[tokio::test]
async fn what_the_store_says_is_checked() {
    let stored = Digest::of(Algorithm::Sha256, b"data").hex().to_uppercase();
    let says = |sha256: &str| answer(200, &format!(r#"{{"sha256": "{sha256}", "mime_type": "text/csv"}}"#));
    let store =
        Store::answering([says(&stored), answer(201, "stored"), says(&"0".repeat(64)), says("?")]).await;
    let mut results = Vec::new();
    for _ in 0..4 {
        results.push(save(&store, request("x", "data", SaveMode::Overwrite)).await);
    }
    let [said, unsaid, other, nonsense] = results.try_into().unwrap();
    assert_eq!(said.unwrap().mime_type(), Some("text/csv"));
    assert_eq!(unsaid.unwrap().mime_type(), Some("application/octet-stream"));
    assert_eq!(other.unwrap_err().kind, FailureKind::Retryable);
    assert_eq!(nonsense.unwrap_err().kind, FailureKind::Retryable);
}

#[tokio::test]
async fn a_success_before_the_last_byte_is_none() {
    let (url, _server) = hasty().await;
    let config = UploadConfig { max_output_file: ByteLimit::Unlimited, ..config() };
    let api = FileApi::new(UploadConfig { file_api_url: Some(url.parse().unwrap()), ..config }, transfers());
    let request = request("x", bytes(64 << 20), SaveMode::Overwrite);
    let failure = api.save(&scope(), request, &watch().0).await.unwrap_err();
    assert_eq!(failure.safe_message, "the store did not confirm the output");
}

#[tokio::test]
async fn no_secret_is_in_any_text() {
    for status in [401, 404, 500] {
        let store = Store::answering((0..3).map(|_| answer(status, "global-token"))).await;
        let api = files(Some(&format!("{}/?secret-query", store.url)));
        let failure =
            api.save(&scope(), request("x", "data", SaveMode::Overwrite), &watch().0).await.unwrap_err();
        let shown = format!("{failure:?} {} {}", failure.error_message(), failure.chain());
        assert!(!shown.contains("global-token") && !shown.contains("secret-query"), "{shown}");
        assert!(!format!("{api:?}").contains("global-token"));
    }
}
