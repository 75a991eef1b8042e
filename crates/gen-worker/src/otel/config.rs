//! Where traces are sent, by the names of the OpenTelemetry specification. Read whether or not traces can be made: what is secret
//! among it is hidden from user code in any case.

#[cfg(any(feature = "otel", test))]
use std::collections::HashMap;
use std::time::Duration;

use gen_worker_core::{
    Secret,
    config::{ConfigErrors, Env, Reader, Var},
};
use url::Url;

const ENDPOINT: Var = Var::new(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "URL",
    "",
    "The collector that traces are sent to, by OTLP over HTTP with protobuf; `/v1/traces` is added. Unset, no traces are made.",
);
const TRACES_ENDPOINT: Var = Var::new(
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "URL",
    "",
    "The same as a full address, to which nothing is added.",
);
const HEADERS: Var = Var::new(
    "OTEL_EXPORTER_OTLP_HEADERS",
    "secret",
    "",
    "Headers for the collector, such as its key: `name=value` with commas between, values percent-encoded.",
);
const TRACES_HEADERS: Var = Var::new(
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "secret",
    "",
    "The same, in the place of `OTEL_EXPORTER_OTLP_HEADERS`.",
);
const TIMEOUT: Var = Var::new(
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "milliseconds",
    "10000",
    "How long the collector may take for one batch of spans, and the worker's end for the last ones.",
);
const SERVICE: Var =
    Var::new("OTEL_SERVICE_NAME", "text", "gen-worker", "What the worker is called in traces.");

/// Where traces are sent.
#[derive(Debug, Clone)]
pub struct OtelConfig {
    /// The collector's full address; `None`: no traces are made.
    pub endpoint: Option<Url>,
    /// Headers for the collector, as they were written.
    pub headers: Option<Secret<String>>,
    /// Of one batch, and of the end.
    pub timeout: Duration,
    /// `service.name`.
    pub service_name: String,
}

impl OtelConfig {
    /// The variables read.
    pub const VARS: &[Var] = &[ENDPOINT, TRACES_ENDPOINT, HEADERS, TRACES_HEADERS, TIMEOUT, SERVICE];

    /// Reads the settings and keeps every mistake.
    pub fn from_env(env: &Env, errors: &mut ConfigErrors) -> Self {
        let mut read = Reader::new(env, errors);
        let base = read.url(&ENDPOINT).map(below);
        let full = read.url(&TRACES_ENDPOINT);
        let (general, own) = (read.secret(&HEADERS), read.secret(&TRACES_HEADERS));
        Self {
            endpoint: full.or(base),
            headers: own.or(general),
            timeout: Duration::from_millis(read.number(&TIMEOUT)),
            service_name: read.text(&SERVICE).unwrap_or_default(),
        }
    }

    /// By name, as they are sent.
    #[cfg(any(feature = "otel", test))]
    pub(super) fn headers(&self) -> HashMap<String, String> {
        let text = self.headers.as_ref().map(|headers| headers.expose().as_str()).unwrap_or_default();
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.trim().to_owned(), decoded(value.trim()))).collect()
    }
}

fn below(mut base: Url) -> Url {
    let path = format!("{}/v1/traces", base.path().trim_end_matches('/'));
    base.set_path(&path);
    base
}

#[cfg(any(feature = "otel", test))]
fn decoded(value: &str) -> String {
    percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> OtelConfig {
        OtelConfig::from_env(&Env::from_iter(pairs.iter().copied()), &mut ConfigErrors::default())
    }

    #[test]
    fn the_path_is_added_to_the_general_address_only() {
        let endpoint = |pairs: &[_]| read(pairs).endpoint.map(String::from);
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/x/");
        assert_eq!(endpoint(&[base]).as_deref(), Some("http://collector:4318/x/v1/traces"));
        let full = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://other/y");
        assert_eq!(endpoint(&[base, full]).as_deref(), Some("http://other/y"));
        assert_eq!(endpoint(&[]), None);
    }

    #[test]
    fn headers_are_decoded_and_hidden() {
        let config = read(&[("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2%3D, a = b")]);
        let headers = config.headers();
        assert_eq!((headers["api-key"].as_str(), headers["a"].as_str()), ("hunter2=", "b"));
        assert!(!format!("{config:?}").contains("hunter2"));
        let own =
            read(&[("OTEL_EXPORTER_OTLP_HEADERS", "a=1"), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2")]);
        assert_eq!(own.headers(), HashMap::from([("b".to_owned(), "2".to_owned())]));
    }
}
