//! Where an input's reference leads, and which credential goes there.

use gen_worker_core::{RunScope, Secret};
use gen_worker_net::{HeaderValue, Trust};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::{Position, Url};

use crate::{config::HubConfig, error::HubError};

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where an input is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) url: Url,
    pub(super) trust: Trust,
    pub(super) token: Option<Secret<String>>,
    pub(super) tenant: Option<HeaderValue>,
    /// The reference without a query.
    pub(super) shown: String,
    /// The path that ends in the file's name.
    pub(super) path: String,
}

impl Place {
    pub(super) fn is_file_api(&self) -> bool {
        self.trust == Trust::Operator
    }
}

/// Finds out where an input is.
pub(super) fn locate(config: &HubConfig, scope: &RunScope, reference: &str) -> Result<Place, HubError> {
    let reference = reference.trim();
    if reference.contains("://") { public(reference) } else { stored(config, scope, reference) }
}

/// A file at a URL that a caller named: it is judged, and gets no credential.
fn public(reference: &str) -> Result<Place, HubError> {
    let url = Url::parse(reference).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| no_input(reference))?;
    Ok(Place {
        shown: format!("{}://{}", url.scheme(), &url[Position::BeforeHost..Position::AfterPath]),
        path: url.path().to_owned(),
        trust: Trust::Payload,
        token: None,
        tenant: None,
        url,
    })
}

/// A file at the run's file API, or at the worker's if the run has none. The run's never sees the worker's credential.
fn stored(config: &HubConfig, scope: &RunScope, reference: &str) -> Result<Place, HubError> {
    let path = encode(reference).ok_or_else(|| no_input(reference))?;
    let (mut url, token) = match &scope.file_base_url {
        Some(base) => (base.clone(), scope.file_token.clone()),
        None => (
            config.file_api.clone().ok_or(HubError::NoFileApi)?,
            scope.file_token.clone().or_else(|| config.file_token.clone()),
        ),
    };
    url.set_path(&format!("{}/api/v1/file/{path}", url.path().trim_end_matches('/')));
    let tenant = scope.tenant_id.as_ref().or(config.tenant_id.as_ref());
    let tenant = tenant.map(|tenant| HeaderValue::from_bytes(tenant.as_str().as_bytes()));
    Ok(Place {
        url,
        trust: Trust::Operator,
        token,
        tenant: tenant.transpose().expect("a tenant's id has no control characters"),
        shown: reference.to_owned(),
        path: reference.to_owned(),
    })
}

/// The reference as a path, without empty segments; `None`: nothing is left, or it would leave its place.
fn encode(reference: &str) -> Option<String> {
    let segments: Vec<_> = reference.split('/').filter(|segment| !segment.is_empty()).collect();
    let stays = |segment: &&str| *segment != "." && *segment != "..";
    if segments.is_empty() || !segments.iter().all(stays) {
        return None;
    }
    let encoded = segments.iter().map(|segment| utf8_percent_encode(segment, RESERVED).to_string());
    Some(encoded.collect::<Vec<_>>().join("/"))
}

fn no_input(reference: &str) -> HubError {
    HubError::InputRef { reference: reference.split('?').next().unwrap_or_default().to_owned() }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{
        RunId, TenantId,
        config::{ConfigErrors, Env},
    };

    use super::*;

    fn config() -> HubConfig {
        let env = Env::from_iter([
            ("FILE_API_BASE_URL", "http://files/base/"),
            ("FILE_API_TOKEN", "global"),
            ("TENANT_ID", "default"),
        ]);
        HubConfig::from_env(&env, &mut ConfigErrors::default())
    }

    fn scope(base: Option<&str>, token: Option<&str>) -> RunScope {
        RunScope {
            run_id: RunId::parse("r").unwrap(),
            tenant_id: None,
            file_base_url: base.map(|base| base.parse().unwrap()),
            file_token: token.map(Secret::from),
            trace: None,
        }
    }

    #[test]
    fn each_base_gets_its_own_token() {
        for (base, token, host, sent) in [
            (None, None, "files", Some("global")),
            (None, Some("run"), "files", Some("run")),
            (Some("http://run/"), Some("run"), "run", Some("run")),
            (Some("http://run/"), None, "run", None),
        ] {
            let place = locate(&config(), &scope(base, token), "a").unwrap();
            let found = place.token.as_ref().map(|token| token.expose().as_str());
            assert_eq!((place.url.host_str().unwrap(), found), (host, sent));
        }
    }

    #[test]
    fn the_runs_tenant_goes_before_the_workers() {
        let mut scope = scope(None, None);
        assert_eq!(locate(&config(), &scope, "a").unwrap().tenant.unwrap(), "default");
        scope.tenant_id = Some(TenantId::parse("t1").unwrap());
        assert_eq!(locate(&config(), &scope, "a").unwrap().tenant.unwrap(), "t1");
    }

    #[test]
    fn a_path_is_encoded_and_stays_below_the_api() {
        let place = |reference: &str| locate(&config(), &scope(None, None), reference);
        for (reference, path) in [
            ("/a//b c.png", "a/b%20c.png"),
            ("it's~(1)%2e%2e*!", "it%27s~%281%29%252e%252e%2A%21"),
            ("a\\..\\b", "a%5C..%5Cb"),
            ("a?b#c", "a%3Fb%23c"),
        ] {
            let expected = format!("http://files/base/api/v1/file/{path}");
            assert_eq!(place(reference).unwrap().url.as_str(), expected);
        }
        for reference in ["", "/", "..", "a/../b", "a/./b", "file:///etc/passwd", "s3://b/k"] {
            assert!(matches!(place(reference), Err(HubError::InputRef { .. })), "{reference}");
        }
    }

    #[test]
    fn a_url_gets_no_credential_and_shows_no_secret() {
        let text = "https://u:pass@host/cat.png?sig=hunter2";
        let place = locate(&config(), &scope(None, Some("run")), text).unwrap();
        assert_eq!(place.shown, "https://host/cat.png");
        assert!(place.token.is_none() && place.tenant.is_none());
        assert_eq!(place.trust, Trust::Payload);
    }
}
