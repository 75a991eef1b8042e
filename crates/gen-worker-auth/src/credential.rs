//! The worker's own token: verified before it is used, replaceable while the worker runs.

use std::{
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use gen_worker_core::{Secret, ports::CredentialSource};
use gen_worker_net::HttpClient;
use tracing::debug;

use crate::{
    cache::KeyCache,
    config::AuthConfig,
    error::AuthError,
    verify::{self, Policy},
};

/// The token for the next dial. One lives as long as the worker; what renews the token and what dials share it.
#[derive(Debug)]
pub struct Credential {
    token: RwLock<Option<Secret<String>>>,
    verifier: Option<Verifier>,
}

#[derive(Debug)]
struct Verifier {
    keys: KeyCache,
    policy: Policy,
}

/// Makes the worker's credential. When both a token and the URL of the scheduler's keys are set, the token is verified.
///
/// # Errors
/// The token is refused, or the keys cannot be had.
pub async fn check(config: AuthConfig, client: &HttpClient) -> Result<Credential, AuthError> {
    let policy = Policy { issuer: config.issuer, audience: config.audience };
    let verifier = config
        .jwks_url
        .map(|url| Verifier { keys: KeyCache::new(client.clone(), url, config.jwks_ttl), policy });
    let credential = Credential { token: RwLock::new(None), verifier };
    if let Some(token) = config.token {
        credential.renew(token).await?;
    }
    Ok(credential)
}

impl Credential {
    /// Puts a token in place of the one held, verified first when the URL of the scheduler's keys is set.
    ///
    /// # Errors
    /// The token is refused, or the keys cannot be had; the token held stays.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the token held.
    pub async fn renew(&self, token: Secret<String>) -> Result<(), AuthError> {
        if let Some(verifier) = &self.verifier {
            verifier.verify(token.expose()).await?;
        }
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }
}

impl CredentialSource for Credential {
    fn bearer(&self) -> Option<Secret<String>> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Verifier {
    async fn verify(&self, token: &str) -> Result<(), AuthError> {
        let keys = self.keys.keys_for(&verify::key_id(token)?).await?;
        let claims = verify::verify(token, &keys, &self.policy, SystemTime::now())?;
        debug!(expires_at = ?claims.expires_at, "token verified");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use axum::{Router, extract::State, http::StatusCode, routing::get};
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
            jwks_url: jwks_url.cloned(),
            jwks_ttl: Duration::from_secs(300),
            issuer: None,
            audience: None,
        }
    }

    fn client() -> HttpClient {
        HttpClient::new(NetConfig::from_env(&Env::default(), &mut ConfigErrors::default())).unwrap()
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
        credential.renew("next".into()).await.unwrap();
        assert_eq!(credential.bearer(), Some("next".into()));
        assert!(!format!("{credential:?}").contains("next"));
    }

    #[tokio::test]
    async fn a_new_key_is_found_after_a_while() {
        let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
        let (old, new) = (ONE.token(&json!({})), OTHER.token(&json!({})));
        let credential = check(config(&old, Some(&publisher.url)), &client()).await.unwrap();
        publisher.document.write().unwrap().1 = key_set([&*OTHER]).to_string();

        let refused = credential.renew(new.as_str().into()).await;
        assert!(matches!(refused, Err(AuthError::UnknownKey)), "{refused:?}");
        assert_eq!(credential.bearer(), Some(old.as_str().into()));

        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
        credential.renew(new.as_str().into()).await.unwrap();
        assert_eq!(credential.bearer(), Some(new.as_str().into()));
        assert_eq!(publisher.asked.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn callers_share_one_fetch() {
        let (publisher, _server) = publish(StatusCode::OK, key_set([&*ONE]).to_string()).await;
        let cache = KeyCache::new(client(), publisher.url.clone(), Duration::ZERO);
        let (one, two) = tokio::join!(cache.keys_for("one"), cache.keys_for("one"));
        assert!(one.unwrap().get("one").is_some() && two.unwrap().get("one").is_some());
        assert_eq!(publisher.asked.load(Ordering::Relaxed), 1);
    }
}
