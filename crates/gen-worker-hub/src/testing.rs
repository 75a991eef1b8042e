//! A file server on loopback that can misbehave, for this crate's tests.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use gen_worker_core::{Algorithm, ByteLimit, ByteSize, Digest};
use gen_worker_net::{AllowList, HttpClient, NetConfig};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{Hub, HubConfig};

/// How one request is answered. Ranges are honoured unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Good,
    /// Breaks off after this many bytes.
    Cut(usize),
    /// The first byte is wrong.
    Corrupt,
    /// The whole file, whatever was asked for.
    Whole,
    /// A range from another place than was asked for.
    WrongRange,
    Status(u16),
}

/// Serves one file under each path until it is dropped.
pub(crate) struct FileServer {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

struct Shared {
    content: Bytes,
    /// Given out in turn; then all is good.
    answers: Mutex<VecDeque<Answer>>,
    seen: Mutex<Vec<(String, HeaderMap)>>,
    headers: HeaderMap,
    gate: Semaphore,
}

impl FileServer {
    pub(crate) async fn start(content: &[u8], answers: &[Answer]) -> Self {
        let sha256 = Digest::of(Algorithm::Sha256, content).hex();
        let headers = [("x-cozy-sha256", sha256.as_str()), ("etag", "\"v1\"")];
        Self::with_headers(content, answers, &headers, usize::MAX >> 4).await
    }

    /// A server that adds these headers, and answers this many requests until it is told to go on.
    pub(crate) async fn with_headers(
        content: &[u8],
        answers: &[Answer],
        headers: &[(&str, &str)],
        open: usize,
    ) -> Self {
        let named = |(name, value): &(&str, &str)| {
            let name = header::HeaderName::try_from(*name).unwrap();
            (name, header::HeaderValue::try_from(*value).unwrap())
        };
        let shared = Arc::new(Shared {
            content: Bytes::copy_from_slice(content),
            answers: Mutex::new(answers.iter().copied().collect()),
            seen: Mutex::default(),
            headers: headers.iter().map(named).collect(),
            gate: Semaphore::new(open),
        });
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, shared, _tasks: tasks }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers the requests that wait.
    pub(crate) fn open(&self) {
        self.shared.gate.add_permits(100);
    }

    /// What a header was in each request, oldest first; empty: absent.
    pub(crate) fn seen(&self, name: &str) -> Vec<String> {
        let seen = self.shared.seen.lock().unwrap();
        let value = |headers: &HeaderMap| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        seen.iter().map(|(_, headers)| value(headers).unwrap_or_default()).collect()
    }

    /// The path of each request, oldest first.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.shared.seen.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
    shared.seen.lock().unwrap().push((path, headers.clone()));
    shared.gate.acquire().await.unwrap().forget();
    let answer = shared.answers.lock().unwrap().pop_front().unwrap_or(Answer::Good);
    let range = headers.get(header::RANGE).map(|range| range.to_str().unwrap());
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut response = reply(&shared.content, answer, from).into_response();
    response.headers_mut().extend(shared.headers.clone());
    response
}

fn reply(content: &Bytes, answer: Answer, from: Option<usize>) -> Response {
    let total = content.len();
    match (answer, from) {
        (Answer::Status(status), _) => StatusCode::from_u16(status).unwrap().into_response(),
        (Answer::Corrupt, _) => {
            let mut wrong = content.to_vec();
            wrong[0] ^= 1;
            wrong.into_response()
        }
        (Answer::Cut(length), from) => {
            let status = from.map_or(StatusCode::OK, |_| StatusCode::PARTIAL_CONTENT);
            let from = from.unwrap_or(0);
            let start = content.slice(from..from + length);
            let cut = futures_util::stream::unfold(Some(start), |start| async move {
                // Once the connection has nothing else to do, it sends what it has.
                tokio::task::yield_now().await;
                match start {
                    Some(start) if !start.is_empty() => Some((Ok(start), Some(Bytes::new()))),
                    Some(_) => Some((Err(io::Error::other("cut")), None)),
                    None => None,
                }
            });
            let length = [(header::CONTENT_LENGTH, (total - from).to_string())];
            (status, length, partial(from, total), Body::from_stream(cut)).into_response()
        }
        (Answer::Whole, _) | (Answer::Good, None) => content.clone().into_response(),
        (Answer::WrongRange, from) => ranged(content, from.unwrap_or(0) - 1),
        (Answer::Good, Some(from)) => ranged(content, from),
    }
}

fn ranged(content: &Bytes, from: usize) -> Response {
    let range = partial(from, content.len());
    (StatusCode::PARTIAL_CONTENT, range, content.slice(from..)).into_response()
}

fn partial(from: usize, total: usize) -> [(header::HeaderName, String); 1] {
    [(header::CONTENT_RANGE, format!("bytes {from}-{}/{total}", total - 1))]
}

pub(crate) fn client(allow: &[&str]) -> HttpClient {
    HttpClient::new(NetConfig {
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        min_rate: 0,
        attempts: 3,
        url_allow: AllowList::parse(allow).unwrap(),
    })
    .unwrap()
}

/// Settings with this server as hub and file API.
pub(crate) fn config(cache: &Path, server: &FileServer) -> HubConfig {
    HubConfig {
        hub_url: Some(server.url("/").parse().unwrap()),
        hub_token: Some("hub-token".into()),
        cache_dir: cache.to_owned(),
        file_api: Some(server.url("/").parse().unwrap()),
        file_token: Some("file-token".into()),
        tenant_id: None,
        max_input_file: ByteLimit::Max(ByteSize::mib(1)),
        parallel_downloads: 2,
        show_bars: false,
    }
}

pub(crate) fn hub(cache: &Path, server: &FileServer) -> Hub {
    Hub::new(config(cache, server), client(&["127.0.0.1"]))
}
