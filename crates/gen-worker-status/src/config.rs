//! Where a worker is seen.

use std::time::Duration;

use gen_worker_core::config::{ConfigErrors, Env, Reader, Var};

const HTTP_ADDR: Var = Var::new(
    "WORKER_HTTP_ADDR",
    "host:port",
    "",
    "Where `/metrics`, `/livez`, `/readyz` and `/startupz` are served, without a password: an address that only the machine or the pod's network reaches. Port 0: any free one, which the log names. Unset: nowhere.",
);

const NOTIFY_SOCKET: Var = Var::new(
    "NOTIFY_SOCKET",
    "path",
    "",
    "Set by systemd for a service of `Type=notify`: where it is told that the worker is connected, and that it leaves.",
);
const WATCHDOG: Var = Var::new(
    "WATCHDOG_USEC",
    "microseconds",
    "",
    "Set by systemd for a service with `WatchdogSec=`: how long it waits for a sign of life, of which it gets two in that time, as long as the control loop turns.",
);

/// Where a worker is seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatusConfig {
    /// Where health and metrics are served, as `host:port`; `None`: nowhere.
    pub http_addr: Option<String>,
    /// The socket of the service manager; one that begins with `@` is no file. `None`: there is none.
    pub notify_socket: Option<String>,
    /// How long the service manager waits for a sign of life; `None`: it wants none.
    pub watchdog: Option<Duration>,
}

impl StatusConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[HTTP_ADDR, NOTIFY_SOCKET, WATCHDOG];

    /// Reads the settings and keeps every mistake.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut read = Reader::new(env, errors);
        let http_addr = read.text(&HTTP_ADDR);
        let notify_socket = read.text(&NOTIFY_SOCKET);
        let watchdog =
            read.optional_number(&WATCHDOG).filter(|micros| *micros > 0).map(Duration::from_micros);
        if let Some(text) = http_addr.as_ref().filter(|text| !is_host_port(text)) {
            let example = "expected `host:port`, such as `0.0.0.0:9090`";
            errors.push(format!("{} is `{text}`: {example}", HTTP_ADDR.name));
        }
        Self { http_addr, notify_socket, watchdog }
    }
}

fn is_host_port(text: &str) -> bool {
    let parts = text.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, mistakes: usize) {
        let mut errors = ConfigErrors::default();
        let config = StatusConfig::from_env(&Env::from_iter([("WORKER_HTTP_ADDR", text)]), &mut errors);
        assert_eq!(errors.to_string().lines().count(), mistakes, "{errors}");
        assert_eq!(config.http_addr.as_deref(), Some(text).filter(|text| !text.is_empty()));
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        check("", 0);
        check("0.0.0.0:9090", 0);
        check("[::]:0", 0);
        check("localhost:9090", 0);
        check(":9090", 1);
        check("9090", 1);
        check("localhost:http", 1);
    }
}
