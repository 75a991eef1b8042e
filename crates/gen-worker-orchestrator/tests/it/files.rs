//! Files of runs and callers, models, presigned uploads.

use std::fs;

use bytes::Bytes;
use gen_worker_core::{Algorithm, ByteLimit, ByteSize, Digest, OutputBody};
use gen_worker_net::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{ALL, Harness, Worker};

const SHA256: &str = "x-cozy-sha256";

/// A run that goes on, and the header with its file token.
async fn run(harness: &Harness, worker: &mut Worker, tenant_id: &str) -> (String, String) {
    let run_id = harness.submit("f", Some(tenant_id)).await;
    let request = worker.run().await;
    (run_id, format!("Bearer {}", request.file_token))
}

fn sha256(content: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, content).hex()
}

#[tokio::test]
async fn one_tenant_never_reads_anothers_file() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 0).await;
    let (mine, my_token) = run(&harness, &mut worker, "me").await;
    let (_, my_other_token) = run(&harness, &mut worker, "me").await;
    let (_, foreign_token) = run(&harness, &mut worker, "you").await;
    let path = format!("/api/v1/file/runs/{mine}/outputs/a.png");
    let send = async |method, token: &str| {
        harness.send(method, &path, &[("authorization", token)], b"").await.status()
    };
    let saved = harness.send(Method::PUT, &path, &[("authorization", &my_token)], b"secret").await;
    assert_eq!(saved.status(), StatusCode::OK);
    assert_eq!(send(Method::GET, &my_token).await, StatusCode::OK);
    assert_eq!(send(Method::GET, &my_other_token).await, StatusCode::OK);
    assert_eq!(send(Method::GET, &foreign_token).await, StatusCode::NOT_FOUND);
    assert_eq!(send(Method::HEAD, &foreign_token).await, StatusCode::NOT_FOUND);
    assert_eq!(send(Method::GET, "Bearer guess").await, StatusCode::UNAUTHORIZED);
    assert_eq!(send(Method::PUT, &my_other_token).await, StatusCode::FORBIDDEN);
    assert_eq!(send(Method::PUT, &foreign_token).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_saved_file_is_described_and_not_created_twice() {
    let harness = Harness::with(|config| config.max_file = ByteLimit::Max(ByteSize(100))).await;
    let mut worker = harness.worker(&ALL, 0).await;
    let (run_id, token) = run(&harness, &mut worker, "me").await;
    let reference = format!("runs/{run_id}/outputs/a b.png");
    let path = format!("/api/v1/file/runs/{run_id}/outputs/a%20b.png");
    let auth: &[_] = &[("authorization", token.as_str())];
    let created = harness.send(Method::POST, &path, auth, b"one").await;
    let asset: Value = created.json(1000).await.unwrap();
    let expected = json!({
        "ref": reference, "tenant_id": "me", "mime_type": "image/png", "size_bytes": 3, "sha256": sha256(b"one"),
    });
    assert_eq!(asset, expected);
    let again = harness.send(Method::POST, &path, auth, b"two").await;
    assert_eq!(again.status(), StatusCode::CONFLICT);
    let head = harness.send(Method::HEAD, &path, auth, b"").await;
    let header = |name: &str| head.headers().get(name).unwrap().to_str().unwrap();
    assert_eq!((header(SHA256), header("x-cozy-size-bytes")), (sha256(b"one").as_str(), "3"));
    assert_eq!((header("x-cozy-mime-type"), header("content-length")), ("image/png", "3"));
    let large = harness.send(Method::PUT, &path, auth, &[0; 101]).await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    for outside in ["inputs/x", "runs/other/outputs/x"] {
        let refused = harness.send(Method::PUT, &format!("/api/v1/file/{outside}"), auth, b"x").await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{outside}");
    }
    let up = format!("/api/v1/file/runs/{run_id}/outputs/%2e%2e/%2e%2e/x");
    assert_eq!(harness.send(Method::PUT, &up, auth, b"x").await.status(), StatusCode::FORBIDDEN);
    let up = format!("/api/v1/file/runs/{run_id}/outputs/..%2f..%2fx");
    assert_eq!(harness.send(Method::PUT, &up, auth, b"x").await.status(), StatusCode::BAD_REQUEST);
    let target = harness.folder.path().join("got.png");
    harness.client.download(&reference, None, &target).await.unwrap();
    assert_eq!(fs::read(target).unwrap(), b"one");
}

#[tokio::test]
async fn a_callers_file_is_read_by_that_tenants_runs() {
    let harness = Harness::start().await;
    let mut worker = harness.worker(&ALL, 0).await;
    let content = OutputBody::Bytes(Bytes::from_static(b"picture"));
    let asset = harness.client.upload("in.png", content, Some("me")).await.unwrap();
    let path = format!("/api/v1/file/{}", asset.reference);
    for (tenant_id, status) in [("me", StatusCode::OK), ("you", StatusCode::NOT_FOUND)] {
        let (_, token) = run(&harness, &mut worker, tenant_id).await;
        let answer = harness.send(Method::GET, &path, &[("authorization", &token)], b"").await;
        assert_eq!(answer.status(), status, "{tenant_id}");
    }
    let target = harness.folder.path().join("back.png");
    assert!(harness.client.download(&asset.reference, None, &target).await.is_err());
    harness.client.download(&asset.reference, asset.tenant_id.as_deref(), &target).await.unwrap();
    assert_eq!(fs::read(target).unwrap(), b"picture");
}

#[tokio::test]
async fn a_model_is_served_in_parts() {
    let models = tempfile::tempdir().unwrap();
    fs::create_dir(models.path().join("org")).unwrap();
    fs::write(models.path().join("org/model.onnx"), b"0123456789").unwrap();
    let harness = Harness::with(|config| config.models_dir = Some(models.path().to_owned())).await;
    let get = async |path: &str, headers: &[(&'static str, &str)]| {
        harness.send(Method::GET, &format!("/hub/{path}"), headers, b"").await
    };
    let whole = get("org/model.onnx", &[]).await;
    assert_eq!(whole.headers()[SHA256], sha256(b"0123456789").as_str());
    let etag = whole.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(whole.bytes(100).await.unwrap(), "0123456789");
    let part = get("org/model.onnx", &[("range", "bytes=4-6"), ("if-range", &etag)]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], "bytes 4-6/10");
    assert_eq!(part.bytes(100).await.unwrap(), "456");
    let known = get("org/model.onnx", &[("if-none-match", &etag)]).await;
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    let beyond = get("org/model.onnx", &[("range", "bytes=10-")]).await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(get("org/none.onnx", &[]).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(get("org", &[]).await.status(), StatusCode::NOT_FOUND);
    fs::write(models.path().join("org/model.onnx"), b"changed").unwrap();
    assert_eq!(get("org/model.onnx", &[]).await.headers()[SHA256], sha256(b"changed").as_str());
}

#[tokio::test]
async fn a_presigned_address_takes_what_was_signed() {
    let harness = Harness::start().await;
    let wanted = br#"{"name": "out put.png", "content_type": "image/png"}"#;
    let json = [("content-type", "application/json")];
    let granted = harness.send(Method::POST, "/v1/presign", &json, wanted).await;
    let granted: Value = granted.json(1000).await.unwrap();
    assert_eq!(granted["headers"], serde_json::json!({"Content-Type": "image/png"}));
    let put_url = granted["put_url"].as_str().unwrap();
    let put = async |url: &str, content_type: &str| {
        harness.send(Method::PUT, url, &[("content-type", content_type)], b"picture").await.status()
    };
    assert_eq!(put(put_url, "text/html").await, StatusCode::FORBIDDEN);
    assert_eq!(put(&format!("{put_url}0"), "image/png").await, StatusCode::FORBIDDEN);
    assert_eq!(put(put_url, "image/png").await, StatusCode::OK);
    let public = harness.send(Method::GET, granted["public_url"].as_str().unwrap(), &[], b"").await;
    assert_eq!(public.headers()["content-type"], "image/png");
    assert_eq!(public.bytes(100).await.unwrap(), "picture");
}
