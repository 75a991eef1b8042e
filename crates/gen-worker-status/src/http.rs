//! Four pages over HTTP/1.1: one request a connection, and a bound on everything.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use gen_worker_core::ports::Vitals;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    health::{Probe, judge},
    status::Pages,
    text,
};

/// Connections at the same time; more wait. One scraper and one prober need two.
const MAX_CONNECTIONS: usize = 32;

/// How long a connection may take, from its first byte to its last. Scrapers give up after ten seconds by default.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a peer may take to ask. Whoever wants to know asks at once, and who does not must not keep a place for long.
const ASKING: Duration = Duration::from_secs(2);

/// How long to wait when the system has no descriptor for another connection.
const RETRY: Duration = Duration::from_millis(100);

/// Most that is read before a request is understood, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// Serves for as long as it is polled.
pub(crate) async fn serve(listener: &TcpListener, pages: &Pages, worker: &dyn Vitals) {
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            accepted = accept(listener), if connections.len() < MAX_CONNECTIONS => {
                connections.push(converse(accepted, pages, worker));
            }
            Some(()) = connections.next() => {}
        }
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                debug!(%error, "a connection for health or metrics was not taken");
                sleep(RETRY).await;
            }
        }
    }
}

/// One connection, whatever its peer does.
async fn converse(stream: TcpStream, pages: &Pages, worker: &dyn Vitals) {
    let service =
        service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, pages, worker))));
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(MAX_HEAD).timer(TokioTimer::new()).header_read_timeout(ASKING);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    match timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "a request for health or metrics failed"),
        Err(_) => debug!("a request for health or metrics took too long"),
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages, worker: &dyn Vitals) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/metrics" => response(StatusCode::OK, text::MEDIA_TYPE, text::render(&pages.readings(worker))),
        "/livez" => health(Probe::Live, worker),
        "/readyz" => health(Probe::Ready, worker),
        "/startupz" => health(Probe::Started, worker),
        _ => plain(StatusCode::NOT_FOUND, "/metrics /livez /readyz /startupz\n"),
    }
}

fn health(probe: Probe, worker: &dyn Vitals) -> Response<Full<Bytes>> {
    let verdict = judge(probe, &worker.condition());
    let status = if verdict.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::to_string(&verdict).expect("a verdict is a map of texts");
    response(status, "application/json", body + "\n")
}

fn plain(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain", body)
}

fn response(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
