//! The settings of HTTP.

use std::time::Duration;

use gen_worker_core::config::{ConfigErrors, Env, Reader, Var};

use crate::allow::AllowList;

const RETRIES: Var =
    Var::new("WORKER_DOWNLOAD_RETRIES", "tries", "3", "How often a transfer is tried in all; 0 and 1: once.");
const URL_ALLOW: Var = Var::new(
    "WORKER_URL_ALLOW",
    "comma-separated hosts, host:port pairs or CIDR blocks",
    "",
    "Private addresses that URLs in a payload may reach all the same.",
);
const CONNECT_TIMEOUT: Var = Var::new(
    "WORKER_HTTP_CONNECT_TIMEOUT_SECONDS",
    "seconds",
    "10",
    "Longest wait for a connection to be made.",
);
const IDLE_TIMEOUT: Var = Var::new(
    "WORKER_HTTP_IDLE_TIMEOUT_SECONDS",
    "seconds",
    "30",
    "Longest wait in which no byte moves in either direction.",
);
const RATE_FLOOR: Var = Var::new(
    "WORKER_HTTP_MIN_BYTES_PER_SECOND",
    "bytes a second",
    "1024",
    "Least rate of an answer over one idle timeout; a slower one counts as broken off. 0: none.",
);

/// How HTTP is spoken.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Longest wait for a connection to be made.
    pub connect_timeout: Duration,
    /// Longest wait in which no byte moves in either direction.
    pub idle_timeout: Duration,
    /// Least bytes a second of an answer, measured over one `idle_timeout`; 0: none.
    pub min_rate: u64,
    /// Tries in all; 0 is taken as 1.
    pub attempts: u32,
    /// What URLs in a payload may reach although it is private.
    pub url_allow: AllowList,
}

impl NetConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[RETRIES, URL_ALLOW, CONNECT_TIMEOUT, IDLE_TIMEOUT, RATE_FLOOR];

    /// Reads the settings and keeps mistakes in `errors`.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut reader = Reader::new(env, errors);
        let allowed = reader.list(&URL_ALLOW);
        let mut config = Self {
            connect_timeout: reader.seconds(&CONNECT_TIMEOUT),
            idle_timeout: reader.seconds(&IDLE_TIMEOUT),
            min_rate: reader.number(&RATE_FLOOR),
            attempts: reader.number(&RETRIES),
            url_allow: AllowList::default(),
        };
        match AllowList::parse(allowed) {
            Ok(list) => config.url_allow = list,
            Err(error) => errors.push(format!("{}: {error}", URL_ALLOW.name)),
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_set_and_defaults_what_is_not() {
        let env = Env::from_iter([
            ("WORKER_DOWNLOAD_RETRIES", "5"),
            ("WORKER_URL_ALLOW", "10.0.0.0/8, minio:9000,files"),
        ]);
        let mut errors = ConfigErrors::default();
        let config = NetConfig::from_env(&env, &mut errors);
        let admits = |url: &str| config.url_allow.admits_url(&url.parse().unwrap());
        let named = ["http://minio:9000/k", "http://minio/k", "https://files/k"].map(admits);
        assert_eq!(named, [true, false, true]);
        assert_eq!((config.attempts, config.idle_timeout), (5, Duration::from_secs(30)));
        assert!(config.url_allow.admits_ip([10, 1, 2, 3].into()));
        assert_eq!(errors, ConfigErrors::default());
    }

    #[test]
    fn an_allow_list_that_cannot_be_read_is_a_mistake() {
        let env = Env::from_iter([("WORKER_URL_ALLOW", "10.0.0.0/99")]);
        let mut errors = ConfigErrors::default();
        NetConfig::from_env(&env, &mut errors);
        assert!(errors.to_string().contains("WORKER_URL_ALLOW"), "{errors}");
    }
}
