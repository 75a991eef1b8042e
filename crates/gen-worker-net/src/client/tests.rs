//! The client against a real server on loopback.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect},
    routing::{any, get},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use gen_worker_core::{OutputBody, Secret};
use http::{HeaderName, HeaderValue, Method};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::*;
use crate::testing::{Server, client};

type Seen = Arc<Mutex<Vec<HeaderMap>>>;

/// Keeps the headers of each request and answers `ok`.
fn recorder(seen: &Seen) -> Router {
    let seen = Arc::clone(seen);
    Router::new().fallback(any(move |headers: HeaderMap| {
        seen.lock().unwrap().push(headers);
        async { "ok" }
    }))
}

/// Answers `/` with each status in turn, then with the last, and counts.
fn statuses(statuses: &'static [u16], count: &Arc<AtomicUsize>) -> Router {
    let count = Arc::clone(count);
    Router::new().fallback(any(move |body: Bytes| {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        let status = StatusCode::from_u16(statuses[nth.min(statuses.len() - 1)]).unwrap();
        async move { (status, [(header::RETRY_AFTER, "0")], body) }
    }))
}

async fn get_error(client: &HttpClient, url: Url, trust: Trust) -> NetError {
    let request = client.request(Method::GET, url, trust);
    request.send_retrying().await.unwrap_err()
}

#[tokio::test]
async fn loopback_is_blocked_for_a_payload_however_it_is_written() {
    let client = client(&[]);
    let server = Server::start(Router::new().fallback(|| async { "secret" })).await;
    let port = server.address.port();
    for host in ["127.0.0.1", "localhost", "a.localhost.", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"] {
        let url: Url = format!("http://{host}:{port}/").parse().unwrap();
        let error = get_error(&client, url, Trust::Payload).await;
        assert!(matches!(error, NetError::Blocked { .. }), "{host}: {error:?}");
    }
}

#[tokio::test]
async fn a_payload_names_no_user_and_no_other_scheme() {
    let client = client(&["127.0.0.1"]);
    for url in ["http://u:p@127.0.0.1/", "http://u@127.0.0.1/", "ftp://127.0.0.1/", "file:///etc/passwd"] {
        let error = client.check(&url.parse().unwrap(), Trust::Payload).unwrap_err();
        assert!(matches!(error, NetError::Blocked { .. }), "{url}");
    }
}

#[tokio::test]
async fn a_redirect_to_a_private_address_is_blocked() {
    let inner = Server::start(Router::new().fallback(|| async { "secret" })).await;
    let target = inner.url("/").to_string();
    let outer =
        Server::start(Router::new().fallback(move || async move { Redirect::temporary(&target) })).await;
    // The list admits the first server only: to the guard it stands for a public one.
    let client = client(&[&outer.address.to_string()]);
    let error = get_error(&client, outer.url("/"), Trust::Payload).await;
    assert!(matches!(error, NetError::Blocked { .. }), "{error:?}");
    let response = client.request(Method::GET, outer.url("/"), Trust::Operator).send().await;
    assert_eq!(response.unwrap().bytes(10).await.unwrap(), "secret");
}

/// Names that lead to these addresses, in turn; the last one stays.
struct Names(Mutex<Vec<Vec<IpAddr>>>);

impl Names {
    fn client(answers: &[&[&str]], allow: &[&str]) -> (Arc<Self>, HttpClient) {
        let answer = |ips: &&[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let names = Arc::new(Self(Mutex::new(answers.iter().rev().map(answer).collect())));
        let config = client(allow).config().clone();
        (Arc::clone(&names), HttpClient::with_names(config, names).unwrap())
    }
}

impl Resolve for Names {
    fn resolve(&self, _: Name) -> Resolving {
        let mut answers = self.0.lock().unwrap();
        let found = if answers.len() > 1 { answers.pop() } else { answers.first().cloned() };
        let found = found.unwrap_or_default().into_iter().map(|ip| SocketAddr::new(ip, 0));
        Box::pin(async move { Ok(Box::new(found) as Addrs) })
    }
}

/// One port of two addresses: to the guard the first is public, since the list admits it, and the second is not.
#[tokio::test]
async fn a_name_that_turns_to_a_private_address_is_not_followed_there() {
    let public = Server::start(Router::new().fallback(|| async { "public" })).await;
    let seen = Seen::default();
    let private = Server::start_at(&format!("127.0.0.2:{}", public.address.port()), recorder(&seen)).await;
    let url: Url = format!("http://rebinds.example:{}/", private.address.port()).parse().unwrap();
    let get = async |client: &HttpClient| {
        let request = client.request(Method::GET, url.clone(), Trust::Payload).fresh_connection();
        request.send().await?.bytes(100).await
    };

    let (names, client) = Names::client(&[&["127.0.0.1"], &["127.0.0.2"]], &["127.0.0.1/32"]);
    assert_eq!(get(&client).await.unwrap(), "public");
    assert_eq!(names.0.lock().unwrap().len(), 1, "what was judged is what was dialled: it is asked for once");
    assert!(matches!(get(&client).await, Err(NetError::Blocked { .. })));

    // Of several addresses none is dialled that is not admitted, whichever comes first.
    let (_, client) = Names::client(&[&["127.0.0.2", "127.0.0.1"]], &["127.0.0.1/32"]);
    assert_eq!(get(&client).await.unwrap(), "public");
    assert!(seen.lock().unwrap().is_empty(), "the private server was asked");

    // It would have answered.
    let (_, client) = Names::client(&[&["127.0.0.2"]], &["127.0.0.0/8"]);
    assert_eq!(get(&client).await.unwrap(), "ok");
}

#[tokio::test]
async fn the_allow_list_admits_by_host_and_by_block() {
    let server = Server::start(Router::new().fallback(|| async { "ok" })).await;
    let by_name: Url = format!("http://localhost:{}/", server.address.port()).parse().unwrap();
    let below = by_name.as_str().replace("localhost", "a.b.LOCALHOST").parse().unwrap();
    for (list, url) in [
        ("localhost", by_name.clone()),
        ("127.0.0.0/8", by_name),
        ("127.0.0.0/8", below),
        ("127.0.0.1", server.url("/")),
    ] {
        let request = client(&[list]).request(Method::GET, url, Trust::Payload);
        assert_eq!(request.send().await.unwrap().status(), 200, "{list}");
    }
}

#[tokio::test]
async fn credentials_do_not_leave_their_origin() {
    let seen = Seen::default();
    let other = Server::start(recorder(&seen)).await;
    let target = other.url("/").to_string();
    let own = Arc::clone(&seen);
    let first = Server::start(
        Router::new()
            .route("/away", get(move || async move { Redirect::temporary(&target) }))
            .route("/near", get(|| async { Redirect::temporary("/here") }))
            .merge(recorder(&own)),
    )
    .await;
    for path in ["/near", "/away"] {
        let request = client(&[])
            .request(Method::GET, first.url(path), Trust::Operator)
            .bearer(&Secret::from("hunter2"))
            .header(HeaderName::from_static("x-plain"), HeaderValue::from_static("p"))
            .sensitive_header(HeaderName::from_static("x-tenant"), HeaderValue::from_static("t"));
        assert_eq!(request.send().await.unwrap().status(), 200);
    }
    let seen = seen.lock().unwrap();
    let names = ["authorization", "x-tenant", "x-plain", "accept-encoding"];
    let sent = |nth: usize| names.map(|name| seen[nth].contains_key(name));
    assert_eq!(sent(0), [true, true, true, true]);
    assert_eq!(sent(1), [false, false, true, true]);
}

#[tokio::test]
async fn redirects_end() {
    let server = Server::start(Router::new().fallback(|| async { Redirect::temporary("/again") })).await;
    let error = get_error(&client(&[]), server.url("/"), Trust::Operator).await;
    assert!(matches!(error, NetError::Redirects), "{error:?}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_and_a_refusal_is_not() {
    for (answers, method, asked, ended) in [
        (&[503, 200][..], Method::GET, 2, Some(200)),
        (&[429, 503, 200], Method::PUT, 3, Some(200)),
        (&[503], Method::GET, 3, None),
        (&[503, 200], Method::POST, 1, None),
        (&[404, 200], Method::GET, 1, Some(404)),
        (&[501, 200], Method::HEAD, 2, Some(200)),
    ] {
        let count = Arc::default();
        let server = Server::start(statuses(answers, &count)).await;
        let request = client(&[]).request(method.clone(), server.url("/"), Trust::Operator);
        let status = request.send_retrying().await.ok().map(|answer| answer.status().as_u16());
        assert_eq!((count.load(Ordering::SeqCst), status), (asked, ended), "{method} {answers:?}");
    }
}

#[tokio::test]
async fn a_server_says_until_when_it_is_busy_by_its_own_clock() {
    // That clock is decades behind ours.
    let busy = [
        (header::DATE, "Sun, 06 Nov 1994 08:49:37 GMT"),
        (header::RETRY_AFTER, "Sun, 06 Nov 1994 08:50:07 GMT"),
    ];
    let router = Router::new().fallback(move || async move { (StatusCode::TOO_MANY_REQUESTS, busy) });
    let server = Server::start(router).await;
    let answer = client(&[]).request(Method::GET, server.url("/"), Trust::Operator).send().await.unwrap();
    let error = answer.into_success().unwrap_err();
    let seconds = |error: &NetError| match error {
        NetError::Status { retry_after, .. } => retry_after.map(|wait| wait.as_secs()),
        _ => None,
    };
    assert_eq!(seconds(&error), Some(30), "{error:?}");
}

#[tokio::test]
async fn a_file_is_sent_anew_with_its_length_in_each_try() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("body");
    let content = vec![7; 700_000];
    std::fs::write(&path, &content).unwrap();
    for body in
        [OutputBody::File(path), OutputBody::Bytes(content.clone().into()), OutputBody::Bytes(Bytes::new())]
    {
        let count = Arc::default();
        let lengths: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&lengths);
        let router =
            statuses(&[503, 200], &count).layer(axum::middleware::map_request(move |request: Request| {
                let length = request.headers()[header::CONTENT_LENGTH].to_str().unwrap().to_owned();
                seen.lock().unwrap().push(length);
                async move { request }
            }));
        let server = Server::start(router).await;
        let request = client(&[]).request(Method::PUT, server.url("/"), Trust::Operator).body(body);
        let echo = request.send_retrying().await.unwrap().bytes(1 << 20).await.unwrap();
        assert!(echo.is_empty() || echo == content);
        assert_eq!(*lengths.lock().unwrap(), [echo.len().to_string(), echo.len().to_string()]);
    }
}

#[tokio::test]
async fn a_further_try_has_a_connection_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        say(&mut first, "503 Service Unavailable").await;
        // The connection stays open, and could be used again.
        let (mut second, _) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            _ = first.read_u8() => panic!("the connection that failed was used again"),
        };
        say(&mut second, "200 OK").await;
    });
    let answer = client(&[]).request(Method::PUT, url, Trust::Operator).send_retrying().await.unwrap();
    assert_eq!(answer.status(), 200);
    server.join_next().await.unwrap().unwrap();
}

/// Reads a request without a body and answers it.
async fn say(connection: &mut TcpStream, status: &str) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nRetry-After: 0\r\n\r\n");
    connection.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn silence_is_bounded() {
    let endless = || async {
        let start = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"abc"))]);
        Body::from_stream(start.chain(stream::pending())).into_response()
    };
    let silent = || std::future::pending::<StatusCode>();
    let router = Router::new().route("/endless", get(endless)).route("/silent", get(silent));
    let server = Server::start(router).await;
    let error = get_error(&client(&[]), server.url("/silent"), Trust::Operator).await;
    assert!(matches!(error, NetError::Timeout), "{error:?}");
    let request = client(&[]).request(Method::GET, server.url("/endless"), Trust::Operator);
    let mut response = request.send().await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "abc");
    assert!(matches!(response.chunk().await, Err(NetError::Timeout)));
}

#[tokio::test]
async fn an_answer_is_read_within_a_bound() {
    let server = Server::start(Router::new().fallback(|| async { r#"{"a": 1}"# })).await;
    let answer = || client(&[]).request(Method::GET, server.url("/"), Trust::Operator).send();
    let error = answer().await.unwrap().bytes(7).await.unwrap_err();
    assert!(matches!(error, NetError::TooLarge { max: 7 }), "{error:?}");
    let value: std::collections::BTreeMap<String, u8> = answer().await.unwrap().json(8).await.unwrap();
    assert_eq!(value["a"], 1);
}

#[tokio::test]
async fn an_error_shows_no_query() {
    let url: Url = "http://127.0.0.1:9/x?sig=hunter2".parse().unwrap();
    let error = client(&[]).request(Method::GET, url, Trust::Operator).send().await.unwrap_err();
    assert!(matches!(error, NetError::Connect { .. }), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("hunter2"));
}

#[tokio::test]
async fn a_token_that_no_header_carries_is_not_sent() {
    let server = Server::start(Router::new().fallback(|| async { "ok" })).await;
    let request = client(&[]).request(Method::GET, server.url("/"), Trust::Operator);
    let error = request.bearer(&Secret::from("a\nb")).send().await.unwrap_err();
    assert!(matches!(error, NetError::Credential), "{error:?}");
}

#[tokio::test]
async fn a_trickle_is_no_sign_of_life() {
    let trickle = || async {
        let bytes = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(b"x")));
        Body::from_stream(bytes.then(|byte| async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            byte
        }))
    };
    let server = Server::start(Router::new().fallback(trickle)).await;
    let config = NetConfig { min_rate: 1000, ..client(&[]).config().clone() };
    let request = HttpClient::new(config).unwrap().request(Method::GET, server.url("/"), Trust::Operator);
    let error = request.send().await.unwrap().bytes(1 << 20).await.unwrap_err();
    assert!(matches!(error, NetError::TooSlow) && error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn a_compressed_answer_is_refused() {
    let router = Router::new().fallback(|| async { ([(header::CONTENT_ENCODING, "gzip")], "packed") });
    let server = Server::start(router).await;
    let error = get_error(&client(&[]), server.url("/"), Trust::Operator).await;
    assert!(matches!(error, NetError::Encoded), "{error:?}");
}

/// Servers pack their pages of errors too, and what counts of those is the status.
#[tokio::test]
async fn what_a_packed_refusal_says_is_heard() {
    let packed = |status: u16| {
        let packed = [(header::CONTENT_ENCODING, "gzip"), (header::LOCATION, "/here")];
        get(move || async move { (StatusCode::from_u16(status).unwrap(), packed, "packed") })
    };
    let router = Router::new()
        .route("/away", packed(302))
        .route("/here", get(|| async { "ok" }))
        .route("/busy", packed(503))
        .route("/gone", packed(404));
    let server = Server::start(router).await;
    let ask = |path: &str| client(&[]).request(Method::GET, server.url(path), Trust::Operator).send();
    assert_eq!(ask("/away").await.unwrap().bytes(10).await.unwrap(), "ok");
    for (path, transient) in [("/busy", true), ("/gone", false)] {
        let error = ask(path).await.unwrap().into_success().unwrap_err();
        assert!(matches!(error, NetError::Status { .. }) && error.is_transient() == transient, "{error:?}");
    }
    let error = ask("/gone").await.unwrap().envelope(100).await.unwrap_err();
    assert!(matches!(error, NetError::Foreign { .. }), "{error:?}");
}

#[tokio::test]
async fn a_page_of_something_in_between_is_no_answer_of_the_service() {
    let json = |status: u16, body: &'static str| {
        get(move || async move { (StatusCode::from_u16(status).unwrap(), body) })
    };
    let router = Router::new()
        .route("/own", json(404, r#"{"error": "no such repo"}"#))
        .route("/page", json(404, "<html>not found</html>"))
        .route("/list", json(200, "[]"))
        .route("/busy", json(503, r#"{"error": "later"}"#));
    let server = Server::start(router).await;
    let ask = async |path: &str| {
        let request = client(&[]).request(Method::GET, server.url(path), Trust::Operator);
        request.send().await.unwrap().envelope(1000).await
    };
    let (status, envelope) = ask("/own").await.unwrap();
    assert_eq!((status.as_u16(), envelope["error"].as_str().unwrap()), (404, "no such repo"));
    for (path, foreign) in [("/page", true), ("/list", true), ("/busy", false)] {
        let error = ask(path).await.unwrap_err();
        assert_eq!(matches!(error, NetError::Foreign { .. }), foreign, "{path}: {error:?}");
        assert!(error.is_transient());
    }
}
