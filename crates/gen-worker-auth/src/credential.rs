//! The worker's own token: verified before it is used, replaceable while the worker runs.

use std::{
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use async_trait::async_trait;
use gen_worker_core::{Classify, FailureKind, JobFailure, MAX_TOKEN_BYTES, Secret, ports::CredentialSource};
use gen_worker_net::HttpClient;
use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use crate::{
    cache::KeyCache,
    config::AuthConfig,
    error::AuthError,
    file::TokenFile,
    verify::{self, Claims, LEEWAY, Policy},
};

/// The token for the next dial. One lives as long as the worker; what renews the token and what dials share it.
#[derive(Debug)]
pub struct Credential {
    held: RwLock<Option<Held>>,
    verifier: Option<Verifier>,
    /// Where newer tokens appear. Locked while a token is put in place of another, so that the last one to come is kept.
    file: Mutex<Option<TokenFile>>,
}

/// A token that has passed its check, if there is one.
#[derive(Debug, Clone)]
struct Held {
    token: Secret<String>,
    /// `None`: never, or not known.
    expires_at: Option<SystemTime>,
}

#[derive(Debug)]
struct Verifier {
    keys: KeyCache,
    policy: Policy,
}

/// Makes the worker's credential. When both a token and the URL of the scheduler's keys are set, the token is verified. A
/// token of `WORKER_JWT_FILE` that is refused may be followed by a good one: the credential is made, and holds none.
///
/// # Errors
/// The token is refused, or the keys cannot be had; or `WORKER_JWT_FILE` cannot be read.
pub async fn check(config: AuthConfig, client: &HttpClient) -> Result<Credential, AuthError> {
    let policy = Policy { issuer: config.issuer, audience: config.audience };
    let verifier = config
        .jwks_url
        .map(|url| Verifier { keys: KeyCache::new(client.clone(), url, config.jwks_ttl), policy });
    let file = config.token_file.filter(|_| config.token.is_none()).map(TokenFile::new);
    let credential = Credential { held: RwLock::new(None), verifier, file: Mutex::new(file) };
    match config.token {
        Some(token) => credential.adopt(token).await?,
        None => match credential.read_again().await {
            Err(error) if !matches!(error, AuthError::File { .. }) => {
                warn!(error = reason(error), "the token of WORKER_JWT_FILE is refused: waiting for another");
            }
            read => read?,
        },
    }
    Ok(credential)
}

impl Credential {
    /// When the token that is held says that it expires; `None`: never, or none is held, or it does not say.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.held()?.expires_at
    }

    /// Takes the file's token if the file has changed since one was taken from it.
    async fn read_again(&self) -> Result<(), AuthError> {
        let mut file = self.file.lock().await;
        let Some(file) = file.as_mut() else { return Ok(()) };
        if let Some((token, version)) = file.read_if_changed().await? {
            self.adopt(token).await?;
            file.taken(version);
            info!("the token of WORKER_JWT_FILE is taken");
        }
        Ok(())
    }

    /// Puts a token in place of the one held, once it has passed its check.
    async fn adopt(&self, token: Secret<String>) -> Result<(), AuthError> {
        if !is_bearer(token.expose()) {
            return Err(AuthError::NotABearer);
        }
        let claims = match &self.verifier {
            Some(verifier) => verifier.verify(token.expose()).await?,
            None => verify::unverified(token.expose()),
        };
        let held = Held { token, expires_at: claims.expires_at };
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Some(held);
        Ok(())
    }

    fn held(&self) -> Option<Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl CredentialSource for Credential {
    fn bearer(&self) -> Option<Secret<String>> {
        self.held().map(|held| held.token)
    }

    fn usable(&self, at: SystemTime) -> bool {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        self.verifier.is_none() || !held.as_ref().is_some_and(|held| held.has_expired(at))
    }

    async fn renew(&self) -> Result<(), JobFailure> {
        let read = self.read_again().await;
        match (self.held(), read) {
            (None, Err(refused)) => return Err(refused.into()),
            (Some(_), Err(refused)) => {
                warn!(error = reason(refused), "no newer token: the worker keeps the one it has");
            }
            (_, Ok(())) => {}
        }
        if self.held().is_some_and(|held| held.has_expired(SystemTime::now())) {
            warn!("the worker's token says that it has expired");
        }
        Ok(())
    }

    async fn refresh(&self, token: Secret<String>) -> Result<(), JobFailure> {
        let _one_at_a_time = self.file.lock().await;
        Ok(self.adopt(token.expose().trim().into()).await?)
    }
}

impl Held {
    fn has_expired(&self, at: SystemTime) -> bool {
        self.expires_at.and_then(|end| end.checked_add(LEEWAY)).is_some_and(|end| at >= end)
    }
}

impl Verifier {
    async fn verify(&self, token: &str) -> Result<Claims, AuthError> {
        let keys = self.keys.keys_for(&verify::key_id(token)?).await?;
        let claims = verify::verify(token, &keys, &self.policy, SystemTime::now())?;
        debug!(expires_at = ?claims.expires_at, "token verified");
        Ok(claims)
    }
}

/// Nothing in an [`AuthError`] is secret, so whoever asked may read it.
impl Classify for AuthError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::NoKeySet { .. } | Self::KeySetAwaited | Self::File { .. } => FailureKind::Retryable,
            _ => FailureKind::Auth,
        }
    }

    fn safe_message(&self) -> String {
        self.to_string()
    }
}

/// Whether a header can carry it. One that none can would keep the worker from dialling for good.
fn is_bearer(token: &str) -> bool {
    !token.is_empty() && token.len() <= MAX_TOKEN_BYTES && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The error and its causes in one line.
fn reason(error: AuthError) -> String {
    JobFailure::from(error).chain()
}

#[cfg(test)]
mod tests;
