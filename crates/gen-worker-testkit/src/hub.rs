//! A hub that serves models, with faults.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{Response, StatusCode},
    response::IntoResponse,
};
use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest};
use serde_json::json;
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    http::{Content, Fault, RecordedRequest, Script, Server, lock, status},
    scheduler::PATIENCE,
};

/// A hub on loopback: files by path, and repositories in the words of the Cozy hub. It stops when dropped.
#[derive(Debug)]
pub struct FakeHub {
    server: Server,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    script: Script,
    /// By path with the query, or by path alone.
    files: Mutex<HashMap<String, Content>>,
    held: Mutex<HashMap<String, Arc<Gate>>>,
}

/// Where requests for one path wait.
#[derive(Debug)]
struct Gate {
    /// A permit for each request that has come.
    asked: Semaphore,
    /// Closed once answers may go out.
    shut: Semaphore,
}

/// Answers that a hub holds back. They go out when this is dropped.
#[derive(Debug)]
pub struct Held {
    path: String,
    gate: Arc<Gate>,
    shared: Arc<Shared>,
}

impl Held {
    /// Waits for a request that this holds back; each request is waited for once.
    ///
    /// # Panics
    /// None comes within 30 s.
    pub async fn asked(&self) {
        let asked = timeout(PATIENCE, self.gate.asked.acquire()).await;
        let asked = asked.unwrap_or_else(|_| panic!("nobody asked for {} within 30 s", self.path));
        asked.expect("it is never closed").forget();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.shared.held).remove(&self.path);
        self.gate.shut.close();
    }
}

impl FakeHub {
    /// A hub that serves nothing yet.
    pub async fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let router = Router::new().fallback(answer).with_state(shared.clone());
        Self { server: Server::start(router).await, shared }
    }

    /// Its base URL, without a slash at its end.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Serves this content at `path`, which starts with a slash.
    pub fn put(&self, path: &str, content: impl Into<Bytes>) {
        let content = Content::new(content, "application/octet-stream");
        lock(&self.shared.files).insert(path.to_owned(), content);
    }

    /// Serves these files, by path in the repository, as `repo` (`org/name`) at `tag`, and returns the snapshot's digest.
    /// The content of a file is at `/files/<repo>/<path>`.
    pub fn put_repo(&self, repo: &str, tag: &str, files: &[(&str, &[u8])]) -> String {
        let entries: Vec<_> = files
            .iter()
            .map(|(path, content)| {
                let at = format!("/files/{repo}/{path}");
                self.put(&at, content.to_vec());
                let blake3 = Digest::of(Algorithm::Blake3, content).hex();
                let url = format!("{}{at}", self.url());
                json!({"path": path, "url": url, "size_bytes": content.len(), "blake3": blake3})
            })
            .collect();
        let listing = serde_json::to_vec(&entries).expect("JSON serialises");
        let digest = Digest::of(Algorithm::Sha256, &listing).to_string();
        let manifest = json!({"snapshot_digest": digest, "objects": {}, "files": entries});
        let api = format!("/api/v1/repos/{repo}");
        self.put_json(&format!("{api}/resolve?tag={tag}"), &json!({"digest": digest}));
        self.put_json(&format!("{api}/snapshots/{digest}/manifest"), &manifest);
        digest
    }

    /// Serves a JSON document at `path`, which may have a query.
    pub fn put_json(&self, path: &str, document: &serde_json::Value) {
        let content = Content::new(document.to_string(), "application/json");
        lock(&self.shared.files).insert(path.to_owned(), content);
    }

    /// Each of these faults befalls one answer for `path`, in this order; after them it is served well again.
    pub fn fault_once(&self, path: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.script.faults().once(path, faults);
    }

    /// This fault befalls every answer for `path`.
    pub fn fault_always(&self, path: &str, fault: Fault) {
        self.shared.script.faults().always(path, fault);
    }

    /// Holds back every answer for `path` from now on.
    pub fn hold(&self, path: &str) -> Held {
        let gate = Arc::new(Gate { asked: Semaphore::new(0), shut: Semaphore::new(0) });
        lock(&self.shared.held).insert(path.to_owned(), gate.clone());
        Held { path: path.to_owned(), gate, shared: self.shared.clone() }
    }

    /// What it was asked so far, oldest first.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        self.shared.script.requests()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (parts, _) = request.into_parts();
    let path = parts.uri.to_string();
    let recorded = RecordedRequest { method: parts.method, path: path.clone(), headers: parts.headers };
    let faults = shared.script.record(recorded.clone());
    let gate = lock(&shared.held).get(parts.uri.path()).cloned();
    if let Some(gate) = gate {
        gate.asked.add_permits(1);
        // It fails when it is closed: the answer may go out.
        let _ = gate.shut.acquire().await;
    }
    if let Some(status) = status(&faults) {
        return status.into_response();
    }
    let files = lock(&shared.files);
    let content = files.get(&path).or_else(|| files.get(parts.uri.path()));
    match content {
        Some(content) => content.answer(&recorded.method, &recorded.headers, &faults),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::http::tests::exchange;

    async fn hub() -> FakeHub {
        let hub = FakeHub::start().await;
        hub.put("/m.bin", "0123456789");
        hub
    }

    #[tokio::test]
    async fn serves_whole_files_and_ranges() {
        let hub = hub().await;
        let whole = exchange(&hub.url(), "GET /m.bin HTTP/1.1").await;
        assert!(whole.starts_with("HTTP/1.1 200") && whole.ends_with("\r\n\r\n0123456789"), "{whole}");
        assert!(whole.contains("x-cozy-sha256: 84d89877"), "{whole}");
        let part = exchange(&hub.url(), "GET /m.bin HTTP/1.1\nRange: bytes=4-6").await;
        assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\n456"), "{part}");
        assert!(part.contains("content-range: bytes 4-6/10"), "{part}");
        let past = exchange(&hub.url(), "GET /m.bin HTTP/1.1\nRange: bytes=10-").await;
        assert!(past.starts_with("HTTP/1.1 416"), "{past}");
        let head = exchange(&hub.url(), "HEAD /m.bin HTTP/1.1").await;
        assert!(head.contains("content-length: 10") && head.ends_with("\r\n\r\n"), "{head}");
    }

    #[tokio::test]
    async fn a_changed_file_is_not_resumed() {
        let request = "GET /m.bin HTTP/1.1\nRange: bytes=4-\nIf-Range: \"other\"";
        let answer = exchange(&hub().await.url(), request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[tokio::test]
    async fn faults_befall_answers_in_order() {
        let hub = hub().await;
        hub.fault_once("/m.bin", [Fault::Status(503), Fault::Truncate(3), Fault::Corrupt(0)]);
        hub.fault_always("/m.bin", Fault::IgnoreRange);
        hub.fault_always("/m.bin", Fault::NoDigest);
        let request = "GET /m.bin HTTP/1.1\nRange: bytes=4-";
        let unavailable = exchange(&hub.url(), request).await;
        assert!(unavailable.starts_with("HTTP/1.1 503"), "{unavailable}");
        let truncated = exchange(&hub.url(), request).await;
        assert!(
            truncated.contains("content-length: 10") && truncated.ends_with("\r\n\r\n012"),
            "{truncated}"
        );
        let corrupt = exchange(&hub.url(), request).await;
        assert!(corrupt.starts_with("HTTP/1.1 200") && corrupt.ends_with("123456789"), "{corrupt}");
        assert!(!corrupt.ends_with("0123456789") && !corrupt.contains("x-cozy-sha256"), "{corrupt}");
        let well = exchange(&hub.url(), request).await;
        assert!(well.ends_with("0123456789"), "{well}");
    }

    #[tokio::test]
    async fn an_answer_is_held_until_it_is_let_go() {
        let hub = hub().await;
        let (url, held) = (hub.url(), hub.hold("/m.bin"));
        let answer = exchange(&url, "GET /m.bin HTTP/1.1");
        tokio::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => panic!("it was held: {answer}"),
            () = held.asked() => {}
        }
        assert!(held.asked().now_or_never().is_none(), "a request is waited for once");
        drop(held);
        assert!(answer.await.ends_with("0123456789"));
    }

    #[tokio::test]
    async fn a_repository_resolves_to_its_files() {
        let hub = FakeHub::start().await;
        let digest = hub.put_repo("org/repo", "v1", &[("a/b.txt", b"hello")]);
        let resolve = exchange(&hub.url(), "GET /api/v1/repos/org/repo/resolve?tag=v1 HTTP/1.1").await;
        assert!(resolve.contains(&digest), "{resolve}");
        let manifest = format!("GET /api/v1/repos/org/repo/snapshots/{digest}/manifest HTTP/1.1");
        assert!(exchange(&hub.url(), &manifest).await.contains("/files/org/repo/a/b.txt"));
        let file = "GET /files/org/repo/a/b.txt HTTP/1.1\nAuthorization: Bearer t";
        assert!(exchange(&hub.url(), file).await.ends_with("hello"));
        let with_credential: Vec<_> = hub.requests().iter().map(RecordedRequest::has_authorization).collect();
        assert_eq!(with_credential, [false, false, true]);
        assert!(exchange(&hub.url(), "GET /none HTTP/1.1").await.starts_with("HTTP/1.1 404"));
    }
}
