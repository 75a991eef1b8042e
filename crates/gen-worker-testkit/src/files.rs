//! A file API that keeps files in memory, and URLs that take one PUT.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, Method, Response, StatusCode, header, request::Parts},
    response::IntoResponse,
};
use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::http::{Content, Fault, MAX_BODY_BYTES, RecordedRequest, Script, Server, lock, status};

const FILES: &str = "/api/v1/file/";
const PRESIGNED: &str = "/put/";

/// A file API on loopback: `PUT`, `POST`, `GET` and `HEAD` at `/api/v1/file/<ref>` with a bearer token, and `PUT` at
/// `/put/<key>` without one, as at a presigned URL. It stops when dropped.
#[derive(Debug)]
pub struct FakeFileApi {
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    token: String,
    script: Script,
    /// By decoded path.
    files: Mutex<HashMap<String, Content>>,
}

impl FakeFileApi {
    /// An empty file API that accepts this bearer token.
    pub async fn start(token: &str) -> Self {
        let shared = Arc::new(Shared { token: token.to_owned(), ..Shared::default() });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        Self { server: Server::start(router).await, shared }
    }

    /// Its base URL, without a slash at its end.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// A URL that takes a `PUT` of this key without a token.
    pub fn put_url(&self, key: &str) -> String {
        format!("{}{PRESIGNED}{key}", self.url())
    }

    /// Keeps a file under this reference.
    pub fn put(&self, reference: &str, content: impl Into<Bytes>, content_type: &str) {
        lock(&self.shared.files).insert(format!("{FILES}{reference}"), Content::new(content, content_type));
    }

    /// What is kept under this reference.
    pub fn file(&self, reference: &str) -> Option<Bytes> {
        self.content(&format!("{FILES}{reference}"))
    }

    /// What was put at [`put_url`](Self::put_url) of this key.
    pub fn uploaded(&self, key: &str) -> Option<Bytes> {
        self.content(&format!("{PRESIGNED}{key}"))
    }

    /// Each of these faults befalls one answer for `path` (`/api/v1/file/<ref>` or `/put/<key>`, as it is sent), in this
    /// order. A request that is answered with a status stores nothing.
    pub fn fault_once(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.script.faults().once(path, faults);
    }

    /// This fault befalls every answer for `path`.
    pub fn fault_always(&self, path: &str, fault: Fault) {
        self.shared.script.faults().always(path, fault);
    }

    /// What it was asked so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.script.requests()
    }

    fn content(&self, path: &str) -> Option<Bytes> {
        lock(&self.shared.files).get(path).map(|content| content.bytes.clone())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let recorded = RecordedRequest {
        method: parts.method.clone(),
        path: parts.uri.to_string(),
        headers: parts.headers.clone(),
    };
    let faults = shared.script.record(recorded);
    if let Some(status) = status(&faults) {
        return status.into_response();
    }
    let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned();
    let refused = if path.starts_with(FILES) { shared.refuse(&parts.headers) } else { None };
    match refused {
        Some(status) => status.into_response(),
        None if path.split('/').any(|segment| segment == "..") => StatusCode::NOT_FOUND.into_response(),
        None => shared.serve(&parts, path, body, &faults),
    }
}

impl Shared {
    fn refuse(&self, headers: &HeaderMap) -> Option<StatusCode> {
        let sent = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        (sent != Some(format!("Bearer {}", self.token).as_str())).then_some(StatusCode::UNAUTHORIZED)
    }

    fn serve(&self, parts: &Parts, path: String, body: Bytes, faults: &[Fault]) -> Response<Body> {
        let is_file = path.starts_with(FILES);
        let mut files = lock(&self.files);
        match parts.method {
            Method::PUT
                if path.starts_with(PRESIGNED) && !parts.headers.contains_key(header::CONTENT_LENGTH) =>
            {
                StatusCode::LENGTH_REQUIRED.into_response()
            }
            Method::POST if is_file && files.contains_key(&path) => StatusCode::CONFLICT.into_response(),
            Method::PUT | Method::POST if is_file => {
                let content = stored(&parts.headers, body);
                let reference = path.trim_start_matches(FILES);
                let receipt = json!({
                    "ref": reference,
                    "size_bytes": content.bytes.len(),
                    "sha256": content.sha256(),
                    "mime_type": content.content_type,
                });
                files.insert(path, content);
                Json(receipt).into_response()
            }
            Method::PUT if path.starts_with(PRESIGNED) => {
                let content = stored(&parts.headers, body);
                let etag = format!("\"{}\"", &content.sha256()[..16]);
                files.insert(path, content);
                [(header::ETAG, etag)].into_response()
            }
            Method::GET | Method::HEAD => match files.get(&path) {
                Some(content) => content.answer(&parts.method, &parts.headers, faults),
                None => StatusCode::NOT_FOUND.into_response(),
            },
            _ => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        }
    }
}

fn stored(headers: &HeaderMap, body: Bytes) -> Content {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    Content::new(body, content_type.unwrap_or("application/octet-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::tests::exchange;

    const REF: &str = "runs/r/outputs/a b.txt";
    const PATH: &str = "/api/v1/file/runs/r/outputs/a%20b.txt";

    fn request(method: &str, body: &str) -> String {
        format!("{method} {PATH} HTTP/1.1\nAuthorization: Bearer t\nContent-Length: {}\n\n{body}", body.len())
    }

    #[tokio::test]
    async fn keeps_what_it_is_sent() {
        let api = FakeFileApi::start("t").await;
        let receipt = exchange(&api.url(), &request("POST", "one")).await;
        assert!(receipt.contains(r#""size_bytes":3"#), "{receipt}");
        assert!(exchange(&api.url(), &request("POST", "two")).await.starts_with("HTTP/1.1 409"));
        assert_eq!(api.file(REF).unwrap(), "one");
        assert!(exchange(&api.url(), &request("PUT", "three")).await.starts_with("HTTP/1.1 200"));
        assert!(exchange(&api.url(), &request("GET", "")).await.ends_with("\r\n\r\nthree"));
        let head = exchange(&api.url(), &request("HEAD", "")).await;
        assert!(head.contains("x-cozy-size-bytes: 5"), "{head}");
    }

    #[tokio::test]
    async fn refuses_other_tokens_and_ways_out() {
        let api = FakeFileApi::start("other").await;
        assert!(exchange(&api.url(), &request("PUT", "x")).await.starts_with("HTTP/1.1 401"));
        let api = FakeFileApi::start("t").await;
        let out = request("GET", "").replace(PATH, "/api/v1/file/a/%2e%2e/b");
        assert!(exchange(&api.url(), &out).await.starts_with("HTTP/1.1 404"));
    }

    #[tokio::test]
    async fn a_fault_stores_nothing() {
        let api = FakeFileApi::start("t").await;
        api.fault_once(PATH, [Fault::Status(503)]);
        assert!(exchange(&api.url(), &request("PUT", "x")).await.starts_with("HTTP/1.1 503"));
        assert_eq!(api.file(REF), None);
        assert!(exchange(&api.url(), &request("PUT", "x")).await.starts_with("HTTP/1.1 200"));
        assert_eq!(api.requests()[0].header("authorization"), Some("Bearer t"));
    }

    #[tokio::test]
    async fn a_presigned_url_wants_a_length_and_no_token() {
        let api = FakeFileApi::start("t").await;
        assert!(api.put_url("k").ends_with("/put/k"));
        let put = exchange(&api.url(), "PUT /put/k HTTP/1.1\nContent-Length: 1\n\nx").await;
        assert!(put.starts_with("HTTP/1.1 200") && put.contains("etag"), "{put}");
        assert_eq!(api.uploaded("k").unwrap(), "x");
        let chunked =
            exchange(&api.url(), "PUT /put/k HTTP/1.1\nTransfer-Encoding: chunked\n\n0\r\n\r\n").await;
        assert!(chunked.starts_with("HTTP/1.1 411"), "{chunked}");
    }
}
