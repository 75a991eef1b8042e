//! The settings of this crate, and the table of their variables.

use std::{path::PathBuf, time::Duration};

use gen_worker_core::{
    Secret,
    config::{ConfigErrors, Env, Reader, Var},
};
use url::Url;

const AUTH_TOKEN: Var =
    Var::new("AUTH_TOKEN", "token", "", "The worker's token for the scheduler, sent as a bearer.");
const WORKER_JWT: Var = Var::new("WORKER_JWT", "token", "", "The token when `AUTH_TOKEN` is absent.");
const JWT_FILE: Var = Var::new(
    "WORKER_JWT_FILE",
    "path",
    "",
    "The file with the token when `AUTH_TOKEN` and `WORKER_JWT` are absent. Read again, when it has changed, before each dial, after the scheduler refused the token, and when it is about to expire.",
);
const JWKS_URL: Var = Var::new(
    "SCHEDULER_JWKS_URL",
    "URL",
    "",
    "Where the scheduler's keys are published. When set, only tokens that they verify are used, at start and later; a worker whose token has expired takes no runs.",
);
const JWKS_TTL: Var = Var::new(
    "SCHEDULER_JWKS_TTL_SECONDS",
    "seconds",
    "300",
    "How long published keys are believed; 0: as long as the worker runs.",
);
const JWT_ISSUER: Var =
    Var::new("SCHEDULER_JWT_ISSUER", "text", "", "The issuer that the token must name; absent: any.");
const JWT_AUDIENCE: Var =
    Var::new("SCHEDULER_JWT_AUDIENCE", "text", "", "The audience that the token must name; absent: any.");

/// Who the worker is and whom it believes.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The worker's own token; `None`: that of the file, and without a file it dials without one.
    pub token: Option<Secret<String>>,
    /// The file that the token is read from when `token` is `None`.
    pub token_file: Option<PathBuf>,
    /// Where the scheduler's keys are published; `None`: tokens are not verified.
    pub jwks_url: Option<Url>,
    /// How long published keys are believed; zero: as long as the worker runs.
    pub jwks_ttl: Duration,
    /// The issuer that a token must name; `None`: any.
    pub issuer: Option<String>,
    /// The audience that a token must name; `None`: any.
    pub audience: Option<String>,
}

impl AuthConfig {
    /// The variables read.
    pub const VARS: &[Var] =
        &[AUTH_TOKEN, WORKER_JWT, JWT_FILE, JWKS_URL, JWKS_TTL, JWT_ISSUER, JWT_AUDIENCE];

    /// Reads the settings; mistakes are kept in `errors`.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut read = Reader::new(env, errors);
        Self {
            token: read.secret(&AUTH_TOKEN).or_else(|| read.secret(&WORKER_JWT)),
            token_file: read.path(&JWT_FILE),
            jwks_url: read.url(&JWKS_URL),
            jwks_ttl: read.seconds(&JWKS_TTL),
            issuer: read.text(&JWT_ISSUER),
            audience: read.text(&JWT_AUDIENCE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config<const N: usize>(variables: [(&str, &str); N]) -> AuthConfig {
        AuthConfig::from_env(&Env::from_iter(variables), &mut ConfigErrors::default())
    }

    #[test]
    fn the_first_token_that_is_not_empty_wins() {
        let both = config([("AUTH_TOKEN", "a"), ("WORKER_JWT", "b")]);
        assert_eq!(both.token, Some("a".into()));
        let second = config([("AUTH_TOKEN", " "), ("WORKER_JWT", "b")]);
        assert_eq!(second.token, Some("b".into()));
        assert!(!format!("{both:?}").contains("\"a\""));
    }

    #[test]
    fn absent_means_unverified_and_any() {
        let config = config([]);
        assert!(config.token.is_none() && config.jwks_url.is_none() && config.issuer.is_none());
        assert_eq!(config.jwks_ttl, Duration::from_secs(300));
    }
}
