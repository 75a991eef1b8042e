//! `health`: whether the worker on this machine lives, for containers, which ask by a command.

use std::{path::Path, time::Duration};

use gen_worker_core::config::ConfigErrors;
use gen_worker_net::{HttpClient, Method, NetConfig, Trust};
use gen_worker_status::StatusConfig;
use tokio::{runtime::Builder, time::timeout};
use url::Url;

use crate::{app::AppError, assemble::AssembleError, config::environment};

/// How long the answer may take; a worker that does not answer hangs. Containers wait longer by default.
const PATIENCE: Duration = Duration::from_secs(4);

/// Most that is read of an answer, in bytes.
const MAX_ANSWER: u64 = 64 << 10;

pub(crate) fn run() -> Result<(), AppError> {
    let env = environment(Path::new("."))?;
    let mut errors = ConfigErrors::default();
    let (status, net) = (StatusConfig::from_env(&env, &mut errors), NetConfig::from_env(&env, &mut errors));
    errors.into_result(())?;
    let url = status.http_addr.as_deref().and_then(livez).ok_or_else(|| {
        AppError::Usage(
            "WORKER_HTTP_ADDR says nowhere that health is served: set it, such as to 127.0.0.1:9090"
                .to_owned(),
        )
    })?;
    let client = HttpClient::new(net).map_err(AssembleError::Http)?;
    let runtime = Builder::new_current_thread().enable_all().build().map_err(AssembleError::Threads)?;
    let asked = async { timeout(PATIENCE, ask(&client, url)).await };
    runtime.block_on(asked).unwrap_or_else(|_| Err(AppError::Unwell("it does not answer".to_owned())))
}

async fn ask(client: &HttpClient, url: Url) -> Result<(), AppError> {
    let request = client.request(Method::GET, url, Trust::Operator);
    let answer = request.send().await.map_err(|error| AppError::Unwell(error.to_string()))?;
    if answer.status().is_success() {
        return Ok(());
    }
    let said = answer.bytes(MAX_ANSWER).await.unwrap_or_default();
    Err(AppError::Unwell(String::from_utf8_lossy(&said).trim().to_owned()))
}

/// Where a worker that serves there is asked from its own machine. `None`: at any free port, which only it knows.
fn livez(address: &str) -> Option<Url> {
    let (host, port) = address.rsplit_once(':').filter(|(_, port)| *port != "0")?;
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "[::]" => "[::1]",
        host => host,
    };
    Url::parse(&format!("http://{host}:{port}/livez")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_seen_everywhere_is_seen_here() {
        for (address, expected) in [
            ("0.0.0.0:9090", Some("http://127.0.0.1:9090/livez")),
            ("[::]:9090", Some("http://[::1]:9090/livez")),
            ("10.1.2.3:80", Some("http://10.1.2.3/livez")),
            ("127.0.0.1:0", None),
        ] {
            assert_eq!(livez(address).as_ref().map(Url::as_str), expected);
        }
    }
}
