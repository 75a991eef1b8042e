//! The credential with real keys, a real publisher and real files.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{Router, body::Body, extract::State, http::StatusCode, routing::get};
use futures_util::stream;
use gen_worker_core::config::{ConfigErrors, Env};
use gen_worker_net::NetConfig;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};
use url::Url;

use super::*;
use crate::fixture::{ONE, OTHER, key_set};

/// Publishes one document, which may change, and counts who asks.
struct Publisher {
    url: Url,
    document: RwLock<(StatusCode, String)>,
    asked: AtomicU32,
}

async fn publish(status: StatusCode, document: String) -> (&'static Publisher, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let publisher: &Publisher = Box::leak(Box::new(Publisher {
        url: url.parse().unwrap(),
        document: RwLock::new((status, document)),
        asked: AtomicU32::new(0),
    }));
    let app = Router::new().route("/keys", get(answer)).with_state(publisher);
    let mut server = JoinSet::new();
    server.spawn(async { axum::serve(listener, app).await.unwrap() });
    (publisher, server)
}

async fn answer(State(publisher): State<&'static Publisher>) -> (StatusCode, String) {
    publisher.asked.fetch_add(1, Ordering::Relaxed);
    publisher.document.read().unwrap().clone()
}

fn config(token: &str, jwks_url: Option<&Url>) -> AuthConfig {
    AuthConfig {
        token: Some(token.into()),
        token_file: None,
        jwks_url: jwks_url.cloned(),
        jwks_ttl: Duration::from_secs(300),
        issuer: None,
        audience: None,
    }
}

fn client() -> HttpClient {
    HttpClient::new(NetConfig::from_env(&Env::default(), &mut ConfigErrors::default())).unwrap()
}

/// Long enough that published keys are asked for again.
async fn a_while_passes() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_verified_token_is_the_bearer() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let token = ONE.token(&json!({}));
    let credential = check(config(&token, Some(&publisher.url)), &client()).await.unwrap();
    assert_eq!(credential.bearer(), Some(token.as_str().into()));
}

#[tokio::test]
async fn a_refused_token_is_in_no_text() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let token = ONE.token(&json!({"exp": 1}));
    let config = config(&token, Some(&publisher.url));
    let shown = format!("{config:?}");
    let error = check(config, &client()).await.unwrap_err();
    assert!(matches!(error, AuthError::Expired));
    for part in token.split('.') {
        assert!(!format!("{shown} {error:?} {error}").contains(part));
    }
}

#[tokio::test]
async fn without_keys_no_token_is_believed() {
    let token = ONE.token(&json!({}));
    for (status, document) in [
        (StatusCode::INTERNAL_SERVER_ERROR, key_set([&*ONE]).to_string()),
        (StatusCode::OK, "<html>".to_owned()),
        (StatusCode::OK, format!("{}{}", key_set([&*ONE]), " ".repeat(1 << 20))),
    ] {
        let (publisher, _server) = publish(status, document).await;
        let refused = check(config(&token, Some(&publisher.url)), &client()).await;
        assert!(matches!(refused, Err(AuthError::NoKeySet { .. })), "{refused:?}");
    }
    let nobody = "http://127.0.0.1:1/keys".parse().unwrap();
    let refused = check(config(&token, Some(&nobody)), &client()).await;
    assert!(matches!(refused, Err(AuthError::NoKeySet { .. })), "{refused:?}");
}

#[tokio::test]
async fn without_a_key_url_any_token_is_taken() {
    let credential = check(config("opaque", None), &client()).await.unwrap();
    assert_eq!(credential.bearer(), Some("opaque".into()));
    credential.refresh("next".into()).await.unwrap();
    assert_eq!(credential.bearer(), Some("next".into()));
    assert!(!format!("{credential:?}").contains("next"));
}

#[tokio::test]
async fn a_new_key_is_found_after_a_while() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let (old, new) = (ONE.token(&json!({})), OTHER.token(&json!({})));
    let credential = check(config(&old, Some(&publisher.url)), &client()).await.unwrap();
    publisher.document.write().unwrap().1 = key_set([&*OTHER]).to_string();

    let refused = credential.refresh(new.as_str().into()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.chain(), "the token's key is not published");
    assert_eq!(credential.bearer(), Some(old.as_str().into()));

    a_while_passes().await;
    credential.refresh(new.as_str().into()).await.unwrap();
    assert_eq!(credential.bearer(), Some(new.as_str().into()));
    assert_eq!(publisher.asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_publisher_that_fails_is_not_asked_with_every_token() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let token = ONE.token(&json!({}));
    let expiring = AuthConfig { jwks_ttl: Duration::from_secs(5), ..config(&token, Some(&publisher.url)) };
    let credential = check(expiring, &client()).await.unwrap();
    publisher.document.write().unwrap().0 = StatusCode::BAD_GATEWAY;
    a_while_passes().await;
    for _ in 0..3 {
        let refused = credential.refresh(token.as_str().into()).await.unwrap_err();
        assert_eq!(refused.kind, FailureKind::Retryable);
    }
    assert_eq!(publisher.asked.load(Ordering::Relaxed), 2);
    publisher.document.write().unwrap().0 = StatusCode::OK;
    a_while_passes().await;
    credential.refresh(token.as_str().into()).await.unwrap();
}

#[tokio::test]
async fn issuer_and_audience_come_from_the_settings() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let outcome = async |claims| {
        let env = Env::from_iter([
            ("AUTH_TOKEN", ONE.token(&claims).as_str()),
            ("SCHEDULER_JWKS_URL", publisher.url.as_str()),
            ("SCHEDULER_JWT_ISSUER", "scheduler"),
            ("SCHEDULER_JWT_AUDIENCE", "worker"),
        ]);
        check(AuthConfig::from_env(&env, &mut ConfigErrors::default()), &client()).await
    };
    outcome(json!({"iss": "scheduler", "aud": "worker"})).await.unwrap();
    let refused = outcome(json!({"iss": "worker", "aud": "worker"})).await;
    assert!(matches!(refused, Err(AuthError::WrongIssuer)), "{refused:?}");
    let refused = outcome(json!({"iss": "scheduler", "aud": "scheduler"})).await;
    assert!(matches!(refused, Err(AuthError::WrongAudience)), "{refused:?}");
}

#[tokio::test]
async fn a_token_that_no_header_can_carry_takes_no_other_ones_place() {
    let credential = check(config("held", None), &client()).await.unwrap();
    for unusable in ["two words", "line\nbreak", "n\u{e4}h", "", " ", "x".repeat((64 << 10) + 1).as_str()] {
        let refused = credential.refresh(unusable.into()).await.unwrap_err();
        assert_eq!(refused.kind, FailureKind::Auth, "{unusable}");
    }
    assert_eq!(bearer(&credential).as_deref(), Some("held"));
    credential.refresh(" sent\n".into()).await.unwrap();
    assert_eq!(bearer(&credential).as_deref(), Some("sent"));
    let refused = check(config("two words", None), &client()).await;
    assert!(matches!(refused, Err(AuthError::NotABearer)), "{refused:?}");
}

#[tokio::test]
async fn callers_share_one_fetch() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let cache = KeyCache::new(client(), publisher.url.clone(), Duration::ZERO);
    let (one, two) = tokio::join!(cache.keys_for("one"), cache.keys_for("one"));
    assert!(one.unwrap().get("one").is_some() && two.unwrap().get("one").is_some());
    assert_eq!(publisher.asked.load(Ordering::Relaxed), 1);
}

fn file_config(path: &Path, jwks_url: Option<&Url>) -> AuthConfig {
    AuthConfig { token: None, token_file: Some(path.to_owned()), ..config("", jwks_url) }
}

fn bearer(credential: &Credential) -> Option<String> {
    credential.bearer().map(|token| token.expose().clone())
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    now.as_secs() as i64 + seconds
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_kept_when_it_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, "one\n").unwrap();
    let credential = check(file_config(&path, None), &client()).await.unwrap();
    assert_eq!(bearer(&credential).as_deref(), Some("one"));

    credential.refresh("sent".into()).await.unwrap();
    credential.renew().await.unwrap();
    assert_eq!(bearer(&credential).as_deref(), Some("sent"), "the file has not changed since");

    fs::write(&path, "the-next").unwrap();
    credential.renew().await.unwrap();
    assert_eq!(bearer(&credential).as_deref(), Some("the-next"));

    fs::remove_file(&path).unwrap();
    credential.renew().await.unwrap();
    assert_eq!(bearer(&credential).as_deref(), Some("the-next"));
}

#[tokio::test]
async fn a_file_without_a_token_ends_the_start_unless_it_is_not_needed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let problem = check(file_config(&path, None), &client()).await.unwrap_err();
    assert!(problem.to_string().contains("WORKER_JWT_FILE"), "{problem}");
    fs::write(&path, "").unwrap();
    assert!(matches!(check(file_config(&path, None), &client()).await, Err(AuthError::File { .. })));

    let both = AuthConfig { token: Some("first".into()), ..file_config(&path, None) };
    let credential = check(both, &client()).await.unwrap();
    credential.renew().await.unwrap();
    assert_eq!(bearer(&credential).as_deref(), Some("first"));
}

#[tokio::test]
async fn a_file_with_a_refused_token_is_waited_for() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    let (bad, good) = (ONE.token(&json!({"exp": 1})), ONE.token(&json!({"exp": in_seconds(60)})));
    fs::write(&path, &bad).unwrap();
    let credential = check(file_config(&path, Some(&publisher.url)), &client()).await.unwrap();
    assert_eq!(bearer(&credential), None);
    let refused = credential.renew().await.unwrap_err();
    assert_eq!((refused.kind, refused.chain()), (FailureKind::Auth, "the token has expired".to_owned()));

    fs::write(&path, &good).unwrap();
    credential.renew().await.unwrap();
    assert_eq!(bearer(&credential), Some(good.clone()));

    fs::write(&path, &bad).unwrap();
    credential.renew().await.unwrap();
    assert_eq!(bearer(&credential), Some(good), "a refused token leaves the one held");
}

#[tokio::test]
async fn a_file_whose_keys_cannot_be_had_is_tried_again_unchanged() {
    let (publisher, _server) = publish(StatusCode::BAD_GATEWAY, key_set([&*ONE]).to_string()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    fs::write(&path, ONE.token(&json!({}))).unwrap();
    let credential = check(file_config(&path, Some(&publisher.url)), &client()).await.unwrap();
    assert_eq!(credential.renew().await.unwrap_err().kind, FailureKind::Retryable);
    publisher.document.write().unwrap().0 = StatusCode::OK;
    a_while_passes().await;
    credential.renew().await.unwrap();
    assert!(credential.bearer().is_some());
}

#[tokio::test]
async fn a_verified_token_is_usable_until_its_leeway_is_over() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let (exp, unknown) = (in_seconds(60), ONE.token(&json!({})));
    let token = ONE.token(&json!({"exp": exp}));
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs((exp + seconds) as u64);
    let credential = check(config(&token, Some(&publisher.url)), &client()).await.unwrap();
    assert!(credential.usable(at(29)) && !credential.usable(at(30)));
    credential.refresh(unknown.as_str().into()).await.unwrap();
    assert!(credential.usable(at(1_000_000)));
    let unverified = check(config(&token, None), &client()).await.unwrap();
    assert!(unverified.usable(at(30)), "what nothing verifies only warns");
}

#[tokio::test]
async fn a_refused_refresh_keeps_the_token_and_shows_none() {
    let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
    let held = ONE.token(&json!({}));
    let credential = check(config(&held, Some(&publisher.url)), &client()).await.unwrap();
    let forged = OTHER.sign(&json!({"alg": "RS256", "kid": ONE.key_id}), &json!({"sub": "forged"}));
    for refused in [forged.as_str(), "opaque-text", ""] {
        let failure = credential.refresh(refused.into()).await.unwrap_err();
        let shown = format!("{failure:?} {} {credential:?}", failure.error_message());
        for part in refused.split('.').chain(held.split('.')).filter(|part| !part.is_empty()) {
            assert!(!shown.contains(part), "{shown}");
        }
    }
    assert_eq!(bearer(&credential), Some(held));
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_never_answers_is_given_five_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap()).parse().unwrap();
    let since = tokio::time::Instant::now();
    let refused = check(config(&ONE.token(&json!({})), Some(&url)), &client()).await;
    assert!(matches!(refused, Err(AuthError::NoKeySet { .. })), "{refused:?}");
    assert_eq!(since.elapsed().as_secs(), 5);
}

/// Sends a head and then a byte each second, for ever.
#[tokio::test(start_paused = true)]
async fn a_publisher_that_trickles_is_given_five_seconds_too() {
    let trickle = || {
        let bytes = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(" "), ()))
        });
        Body::from_stream(bytes)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap()).parse().unwrap();
    let app = Router::new().route("/keys", get(async move || trickle()));
    let mut server = JoinSet::new();
    server.spawn(async { axum::serve(listener, app).await.unwrap() });
    let since = tokio::time::Instant::now();
    let refused = check(config(&ONE.token(&json!({})), Some(&url)), &client()).await;
    assert!(matches!(refused, Err(AuthError::NoKeySet { .. })), "{refused:?}");
    assert_eq!(since.elapsed().as_secs(), 5);
}
