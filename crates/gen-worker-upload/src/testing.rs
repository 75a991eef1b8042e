//! A store on loopback that does as it is told and keeps what it hears.

use std::{
    collections::VecDeque,
    future::ready,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{HeaderMap, Method, Response, Uri},
};
use futures_util::{FutureExt, future::BoxFuture};
use gen_worker_core::{ByteLimit, ByteSize, Cancellation, TenantId, ports::Watch, testing::RecordedEvents};
use gen_worker_net::{AllowList, HttpClient, NetConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use crate::{config::UploadConfig, transfer::Transfers};

/// One request, as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    /// The port that it came from: another one is another connection.
    pub(crate) port: u16,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Heard {
    /// A header as text; empty: it is absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// A value of the query as it was sent; empty: it is absent.
    #[cfg(feature = "s3")]
    pub(crate) fn query(&self, name: &str) -> &str {
        let pairs = self.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }
}

type Decide = dyn Fn(Heard) -> BoxFuture<'static, Response<Body>> + Send + Sync;

struct Told {
    decide: Box<Decide>,
    heard: Mutex<Vec<Heard>>,
}

/// Serves until it is dropped.
pub(crate) struct Store {
    /// Its address as a URL, without a slash at its end.
    pub(crate) url: String,
    told: Arc<Told>,
    _tasks: JoinSet<()>,
}

impl Store {
    /// Gives these answers, one a request; then 200 and nothing else.
    pub(crate) async fn answering(answers: impl IntoIterator<Item = Response<Body>>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        Self::deciding(move |_| ready(answers.lock().unwrap().pop_front().unwrap_or_default()).boxed()).await
    }

    /// Gives the answers that `decide` makes of what is heard.
    pub(crate) async fn deciding(
        decide: impl Fn(Heard) -> BoxFuture<'static, Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let told = Arc::new(Told { decide: Box::new(decide), heard: Mutex::default() });
        let app = Router::new().fallback(hear).layer(DefaultBodyLimit::disable()).with_state(told.clone());
        let app = app.into_make_service_with_connect_info::<SocketAddr>();
        let mut tasks = JoinSet::new();
        tasks.spawn(async { axum::serve(listener, app).await.unwrap() });
        Self { url, told, _tasks: tasks }
    }

    /// What was heard so far, in order.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.told.heard.lock().unwrap().clone()
    }
}

async fn hear(
    State(told): State<Arc<Told>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let heard = Heard { port: from.port(), method, uri, headers, body };
    told.heard.lock().unwrap().push(heard.clone());
    (told.decide)(heard).await
}

/// The address of a server that says yes to whatever it reads the start of, and the server, which ends when it is dropped.
pub(crate) async fn hasty() -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.read_exact(&mut [0; 100]).await.unwrap();
            connection.write_all(b"HTTP/1.1 200 OK\r\nETag: e\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            open.push(connection);
        }
    });
    (url, server)
}

/// An answer of this status that asks for no delay before the next try.
pub(crate) fn answer(status: u16, body: &str) -> Response<Body> {
    Response::builder().status(status).header("retry-after", "0").body(Body::from(body.to_owned())).unwrap()
}

/// A client that may reach loopback when a payload says so, and tries three times.
pub(crate) fn client() -> HttpClient {
    client_allowing(&["127.0.0.1"])
}

/// The same, which waits so long for a silent peer, and tries twice.
pub(crate) fn client_waiting(idle_timeout: Duration) -> HttpClient {
    HttpClient::new(NetConfig { idle_timeout, attempts: 2, ..net_config(&["127.0.0.1"]) }).unwrap()
}

/// A client that may reach these when a payload says so, and tries three times.
pub(crate) fn client_allowing(allow: &[&str]) -> HttpClient {
    HttpClient::new(net_config(allow)).unwrap()
}

fn net_config(allow: &[&str]) -> NetConfig {
    NetConfig {
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        min_rate: 0,
        attempts: 3,
        url_allow: AllowList::parse(allow).unwrap(),
    }
}

/// Settings of a worker with a token and a tenant of its own, and no file API.
pub(crate) fn config() -> UploadConfig {
    UploadConfig {
        file_api_url: None,
        file_api_token: Some("global-token".into()),
        tenant_id: Some(TenantId::parse("worker-tenant").unwrap()),
        max_output_file: ByteLimit::Max(ByteSize::mib(8)),
        max_upload: ByteLimit::Unlimited,
        buffer: ByteLimit::Unlimited,
        concurrency: 8,
        spool_dir: std::env::temp_dir(),
    }
}

/// A way out that may reach loopback when a payload says so.
pub(crate) fn transfers() -> Transfers {
    Transfers::new(&config(), client())
}

/// What an upload hears and says, and a record of what it said.
pub(crate) fn watch() -> (Watch, Arc<RecordedEvents>) {
    let events = Arc::<RecordedEvents>::default();
    (Watch { cancellation: Cancellation::new(), events: events.clone() }, events)
}

/// Bytes that differ from place to place.
pub(crate) fn bytes(length: usize) -> Bytes {
    let mut bytes = (0..251).collect::<Vec<u8>>().repeat(length.div_ceil(251));
    bytes.truncate(length);
    bytes.into()
}
