//! What the HTTP peers share: a server, a record of requests, faults by path, and files served with ranges.

mod content;
mod fault;

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router,
    http::{HeaderMap, Method},
};
use tokio::{net::TcpListener, task::JoinSet};

pub use self::fault::Fault;
pub(crate) use self::{
    content::Content,
    fault::{Faults, status},
};

/// Largest request body that a peer takes. Tests stay far below it.
pub(crate) const MAX_BODY_BYTES: usize = 256 << 20;

/// A request that a peer was sent.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Its method.
    pub method: Method,
    /// Its path with the query, as it was sent.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
}

impl RecordedRequest {
    /// A header's text; `None` when it was not sent or is no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether a credential came with it.
    pub fn has_authorization(&self) -> bool {
        self.headers.contains_key("authorization")
    }
}

/// What a peer was asked, and how it is to fail.
#[derive(Debug, Default)]
pub(crate) struct Script {
    requests: Mutex<Vec<RecordedRequest>>,
    faults: Mutex<Faults>,
}

impl Script {
    /// Keeps a request and says how the answer to it is to fail.
    pub(crate) fn record(&self, request: RecordedRequest) -> Vec<Fault> {
        let path = request.path.split('?').next().unwrap_or_default().to_owned();
        lock(&self.requests).push(request);
        lock(&self.faults).take(&path)
    }

    pub(crate) fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.requests).clone()
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        lock(&self.faults)
    }
}

/// A lock whose value stays usable when a test panicked while it was held.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An HTTP server on loopback; it stops when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    pub(crate) async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("a bound listener has an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            axum::serve(listener, router).await.expect("serving ends only with its task");
        });
        Self { addr, _tasks: tasks }
    }

    /// The base URL, without a slash at its end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    /// Sends a request as written, without its last blank line, and returns everything that comes back.
    pub(crate) async fn exchange(url: &str, request: &str) -> String {
        let host = url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(host).await.unwrap();
        let (head, body) = request.split_once("\n\n").unwrap_or((request, ""));
        let head = head.replace('\n', "\r\n");
        let request = format!("{head}\r\nHost: {host}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A truncated answer may end in a reset; what came before it counts.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}
