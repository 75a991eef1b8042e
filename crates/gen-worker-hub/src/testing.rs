//! A file server on loopback that can misbehave, for this crate's tests.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    ops::Range,
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
use futures_util::StreamExt;
use gen_worker_core::{Algorithm, ByteLimit, ByteSize, Digest};
use gen_worker_net::{AllowList, HttpClient, NetConfig};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};
use url::Url;

use crate::{Hub, HubApi, HubConfig};

/// How one request is answered. Ranges are honoured unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Good,
    /// Breaks off after this many bytes.
    Cut(usize),
    /// Falls silent after this many bytes.
    Stall(usize),
    /// The first byte is wrong.
    Corrupt,
    /// The whole file, whatever was asked for.
    Whole,
    /// As `Whole`, and breaks off after this many bytes.
    CutWhole(usize),
    /// More than was asked for.
    Long,
    /// Less than was announced.
    Short,
    /// The range, of a file as large as no disk.
    Huge,
    /// The whole file without a word of its size.
    Unsized,
    /// This status, in the service's words.
    Said(u16),
    /// Not found, says something in between.
    Page,
    /// A range from another place than was asked for.
    WrongRange,
    /// The range, of another version.
    Changed,
    /// There is nothing in the file.
    Empty,
    /// Packed, unasked.
    Packed,
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
    /// By path with the query; all other paths have `content`.
    files: Mutex<HashMap<String, Bytes>>,
    redirects: Mutex<HashMap<String, String>>,
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
            files: Mutex::default(),
            redirects: Mutex::default(),
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

    /// Serves this at a path, which may have a query.
    pub(crate) fn put(&self, path: &str, content: impl Into<Bytes>) {
        self.shared.files.lock().unwrap().insert(path.to_owned(), content.into());
    }

    /// Sends those who ask for a path elsewhere.
    pub(crate) fn redirect(&self, path: &str, to: &str) {
        self.shared.redirects.lock().unwrap().insert(path.to_owned(), to.to_owned());
    }

    /// The next requests are answered so.
    pub(crate) fn answer(&self, answers: &[Answer]) {
        self.shared.answers.lock().unwrap().extend(answers);
    }

    /// Whether all is good from here on.
    pub(crate) fn is_good(&self) -> bool {
        self.shared.answers.lock().unwrap().is_empty()
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
    let range = headers.get(header::RANGE).and_then(|range| asked(range.to_str().unwrap()));
    if let Some(to) = shared.redirects.lock().unwrap().get(request.uri().path()) {
        return (StatusCode::FOUND, [(header::LOCATION, to.clone())]).into_response();
    }
    let content = shared.files.lock().unwrap().get(request.uri().to_string().as_str()).cloned();
    let content = content.unwrap_or_else(|| shared.content.clone());
    let mut response = reply(&content, answer, range).into_response();
    response.headers_mut().extend(shared.headers.clone());
    if matches!(answer, Answer::Changed) {
        response.headers_mut().insert(header::ETAG, header::HeaderValue::from_static("\"v2\""));
    }
    response
}

/// The first byte and the one after the last of `bytes=<first>-<last>`, in which the last may be missing.
fn asked(range: &str) -> Option<Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = if last.is_empty() { usize::MAX } else { last.parse::<usize>().ok()? + 1 };
    Some(first.parse().ok()?..end)
}

fn reply(content: &Bytes, answer: Answer, range: Option<Range<usize>>) -> Response {
    let total = content.len();
    let range = range.map(|range| range.start..range.end.min(total));
    let from = range.as_ref().map_or(0, |range| range.start);
    match (answer, range) {
        (Answer::Status(status), _) => StatusCode::from_u16(status).unwrap().into_response(),
        (Answer::Said(status), _) => {
            let said = r#"{"error": {"message": "no artifact fits"}}"#;
            (StatusCode::from_u16(status).unwrap(), said).into_response()
        }
        (Answer::Page, _) => (StatusCode::NOT_FOUND, "<html>no such page</html>").into_response(),
        (Answer::Whole, _) | (Answer::Good | Answer::Changed, None) => content.clone().into_response(),
        (Answer::Packed, _) => ([(header::CONTENT_ENCODING, "gzip")], "packed").into_response(),
        (Answer::Empty, _) => {
            (StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, "bytes */0")]).into_response()
        }
        (Answer::Unsized, _) => {
            let chunks = content.chunks(64 << 10).map(|chunk| content.slice_ref(chunk));
            let chunks: Vec<io::Result<Bytes>> = chunks.map(Ok).collect();
            Body::from_stream(futures_util::stream::iter(chunks)).into_response()
        }
        (Answer::CutWhole(length), _) => {
            let length_header = [(header::CONTENT_LENGTH, total.to_string())];
            (length_header, cut(content.slice(..length))).into_response()
        }
        (_, Some(range)) if range.start >= range.end => {
            let of = [(header::CONTENT_RANGE, format!("bytes */{total}"))];
            (StatusCode::RANGE_NOT_SATISFIABLE, of).into_response()
        }
        (Answer::Corrupt, range) => {
            let mut wrong = content.slice(range.unwrap_or(0..total)).to_vec();
            wrong[0] ^= 1;
            let range = partial(&(from..from + wrong.len()), total);
            (StatusCode::PARTIAL_CONTENT, range, wrong).into_response()
        }
        (Answer::Cut(length), range) => {
            let range = range.unwrap_or(0..total);
            let length_header = [(header::CONTENT_LENGTH, range.len().to_string())];
            let body = cut(content.slice(from..from + length));
            (StatusCode::PARTIAL_CONTENT, length_header, partial(&range, total), body).into_response()
        }
        (Answer::Stall(length), range) => {
            let range = range.unwrap_or(0..total);
            let start = futures_util::stream::iter([io::Result::Ok(content.slice(from..from + length))]);
            let body = Body::from_stream(start.chain(futures_util::stream::pending()));
            (StatusCode::PARTIAL_CONTENT, partial(&range, total), body).into_response()
        }
        (Answer::Long, Some(range)) => {
            let more = content.slice(range.start..(range.end + 7).min(total));
            (StatusCode::PARTIAL_CONTENT, partial(&range, total), more).into_response()
        }
        (Answer::Short, Some(range)) => {
            let less = content.slice(range.start..range.end - 7);
            (StatusCode::PARTIAL_CONTENT, partial(&range, total), less).into_response()
        }
        (Answer::WrongRange, range) => {
            let wrong = from - 1..range.map_or(total, |range| range.end);
            (StatusCode::PARTIAL_CONTENT, partial(&wrong, total), content.slice(wrong)).into_response()
        }
        (Answer::Huge, Some(range)) => {
            (StatusCode::PARTIAL_CONTENT, partial(&range, 1 << 60), content.slice(range)).into_response()
        }
        (Answer::Good | Answer::Changed, Some(range)) => {
            (StatusCode::PARTIAL_CONTENT, partial(&range, total), content.slice(range)).into_response()
        }
        (Answer::Long | Answer::Short | Answer::Huge, None) => unreachable!("files are asked for in ranges"),
    }
}

/// A body that breaks off after these bytes.
fn cut(start: Bytes) -> Body {
    Body::from_stream(futures_util::stream::unfold(Some(start), |start| async move {
        // Once the connection has nothing else to do, it sends what it has.
        tokio::task::yield_now().await;
        match start {
            Some(start) if !start.is_empty() => Some((Ok(start), Some(Bytes::new()))),
            Some(_) => Some((Err(io::Error::other("cut")), None)),
            None => None,
        }
    }))
}

fn partial(range: &Range<usize>, total: usize) -> [(header::HeaderName, String); 1] {
    [(header::CONTENT_RANGE, format!("bytes {}-{}/{total}", range.start, range.end - 1))]
}

pub(crate) fn client(allow: &[&str]) -> HttpClient {
    client_that_waits(allow, Duration::from_secs(5))
}

/// A client that takes silence of this length.
pub(crate) fn client_that_waits(allow: &[&str], idle_timeout: Duration) -> HttpClient {
    HttpClient::new(NetConfig {
        connect_timeout: Duration::from_secs(5),
        idle_timeout,
        min_rate: 0,
        attempts: 3,
        url_allow: AllowList::parse(allow).unwrap(),
    })
    .unwrap()
}

/// Settings with this server as hub and file API.
pub(crate) fn config(cache: &Path, server: &FileServer) -> HubConfig {
    config_at(cache, &server.url("/").parse().unwrap())
}

/// The same of a server that another process has.
pub(crate) fn config_at(cache: &Path, base: &Url) -> HubConfig {
    HubConfig {
        hub_url: Some(base.clone()),
        hub_token: Some("hub-token".into()),
        hub_token_file: None,
        cache_dir: cache.to_owned(),
        file_api: Some(base.clone()),
        file_token: Some("file-token".into()),
        tenant_id: None,
        max_input_file: ByteLimit::Max(ByteSize::mib(1)),
        input_cache_dir: cache.join("kept"),
        input_cache_limit: ByteSize::mib(1),
        hub_api: HubApi::Direct,
        hf_endpoint: Some(base.clone()),
        hf_token: Some("hf-token".into()),
        hf_token_file: None,
        allow_pickle: false,
        cache_limit: ByteLimit::Unlimited,
        connections: 4,
        range_bytes: 16 << 20,
        parallel_downloads: 2,
        show_bars: false,
    }
}

pub(crate) fn hub(cache: &Path, server: &FileServer) -> Hub {
    Hub::new(config(cache, server), client(&["127.0.0.1"]))
}
