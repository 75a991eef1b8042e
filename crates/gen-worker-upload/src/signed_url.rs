//! An address that somebody has signed for one `PUT`.

use gen_worker_core::Secret;
use gen_worker_net::{HeaderMap, HeaderName, HeaderValue, HttpClient, Trust, header};
use serde_json::{Map, Value};
use url::Url;

use crate::{error::UploadError, fields::Fields};

/// What the connection alone may say: who is addressed, and where the body ends.
const FORBIDDEN_HEADERS: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// Where to put an output, with the headers that the signature covers.
pub(crate) struct SignedUrl {
    url: Secret<String>,
    pub(crate) headers: HeaderMap,
}

impl SignedUrl {
    /// Reads `put_url` and `headers`.
    pub(crate) fn parse(fields: &mut Fields, client: &HttpClient) -> Result<Self, UploadError> {
        let headers = match fields.take("headers") {
            None => HeaderMap::new(),
            Some(Value::Object(headers)) => {
                parse_headers(headers).map_err(|problem| fields.wrong("headers", problem))?
            }
            Some(_) => return Err(fields.wrong("headers", "is no JSON object")),
        };
        let put_url = fields.required("put_url")?;
        Ok(Self { url: address("put_url", &put_url, fields, client)?, headers })
    }

    pub(crate) fn url(&self) -> Url {
        parsed(&self.url)
    }
}

/// The URL in a field of this name, if it may be asked.
pub(crate) fn address(
    key: &str,
    text: &str,
    fields: &Fields,
    client: &HttpClient,
) -> Result<Secret<String>, UploadError> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| fields.wrong(key, "is no http or https URL"))?;
    match client.check(&url, Trust::Payload) {
        Ok(()) => Ok(Secret::new(url.into())),
        Err(_) => Err(fields.wrong(key, "names an address that may not be reached")),
    }
}

/// What [`address`] has read.
pub(crate) fn parsed(address: &Secret<String>) -> Url {
    address.expose().parse().expect("it was written by a URL")
}

fn parse_headers(fields: Map<String, Value>) -> Result<HeaderMap, &'static str> {
    let mut headers = HeaderMap::new();
    for (name, value) in &fields {
        let value = value.as_str().and_then(|text| HeaderValue::from_str(text).ok());
        let (Ok(name), Some(mut value)) = (HeaderName::from_bytes(name.as_bytes()), value) else {
            return Err("has a name or a value that no header can have");
        };
        if FORBIDDEN_HEADERS.contains(&name) {
            return Err("may not set Host, Content-Length or Transfer-Encoding");
        }
        value.set_sensitive(true);
        if headers.insert(name, value).is_some() {
            return Err("names a header twice");
        }
    }
    Ok(headers)
}
