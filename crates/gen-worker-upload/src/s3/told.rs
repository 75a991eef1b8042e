//! `output_upload.s3`, as the caller wrote it.

use gen_worker_core::Secret;
use gen_worker_net::{HttpClient, Trust};
use rusty_s3::{Bucket, UrlStyle};
use serde_json::Value;
use url::{Host, Url};

use crate::{error::UploadError, fields::Fields};

const KEYS: [&str; 10] = [
    "bucket",
    "key",
    "region",
    "access_key_id",
    "secret_access_key",
    "session_token",
    "endpoint",
    "path_style",
    "public_url",
    "content_type",
];

/// Longest key of S3-compatible stores, in bytes.
const MAX_KEY_BYTES: usize = 1024;

/// Where an object goes, and who may put it there.
pub(super) struct Told {
    pub(super) bucket: Bucket,
    pub(super) key: String,
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Secret<String>,
    pub(super) session_token: Option<Secret<String>>,
    pub(super) public_url: Option<String>,
    pub(super) content_type: Option<String>,
}

impl Told {
    /// Reads the object, and judges the address that it leads to.
    pub(super) fn parse(value: Value, client: &HttpClient) -> Result<Self, UploadError> {
        let mut fields = Fields::of("output_upload.s3", value, &KEYS)?;
        let bucket = bucket(&mut fields, client)?;
        let key = fields.required("key")?;
        if let Some(problem) = key_problem(&key) {
            return Err(fields.wrong("key", problem));
        }
        Ok(Self {
            bucket,
            key,
            access_key_id: fields.required("access_key_id")?,
            secret_access_key: Secret::new(fields.required("secret_access_key")?),
            session_token: fields.text("session_token")?.map(Secret::new),
            public_url: fields.text("public_url")?,
            content_type: fields.text("content_type")?,
        })
    }
}

fn bucket(fields: &mut Fields, client: &HttpClient) -> Result<Bucket, UploadError> {
    let (name, region) = (fields.required("bucket")?, fields.required("region")?);
    // Both become parts of host names.
    if !is_word(&name, |c| c == '.' || c == '_') || name.starts_with('.') {
        return Err(fields.wrong("bucket", "is no name of a bucket"));
    }
    if !is_word(&region, |_| false) {
        return Err(fields.wrong("region", "is no name of a region"));
    }
    let endpoint = fields.text("endpoint")?;
    let style = style(fields.flag("path_style")?, &name, endpoint.is_some());
    let endpoint = match endpoint {
        Some(text) => parse_endpoint(&text).ok_or(fields.wrong("endpoint", "is no http or https URL"))?,
        None => aws(&region),
    };
    if matches!(style, UrlStyle::VirtualHost) && !matches!(endpoint.host(), Some(Host::Domain(_))) {
        return Err(fields.wrong("path_style", "must be true for an endpoint that is an IP address"));
    }
    if client.check(&endpoint, Trust::Payload).is_err() {
        return Err(fields.wrong("endpoint", "names an address that may not be reached"));
    }
    let bucket = Bucket::new(endpoint, style, name, region);
    let bucket =
        bucket.map_err(|_| fields.wrong("bucket", "cannot be part of a host name: set `path_style`"))?;
    match client.check(bucket.base_url(), Trust::Payload) {
        Ok(()) => Ok(bucket),
        Err(_) => Err(fields.wrong("bucket", "leads to an address that may not be reached")),
    }
}

fn aws(region: &str) -> Url {
    // China's regions are a partition with a domain of its own.
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://s3.{region}.{domain}").parse().expect("a region is letters, digits and hyphens")
}

fn parse_endpoint(text: &str) -> Option<Url> {
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// Unless it is said: by path at a store of one's own, which often has one name only, and by host at AWS, whose
/// certificates cover no bucket with a dot.
fn style(path_style: Option<bool>, bucket: &str, own_endpoint: bool) -> UrlStyle {
    let by_path = path_style.unwrap_or(own_endpoint || bucket.contains(['.', '_']));
    if by_path { UrlStyle::Path } else { UrlStyle::VirtualHost }
}

fn is_word(text: &str, also: impl Fn(char) -> bool) -> bool {
    (1..=255).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || also(c))
}

fn key_problem(key: &str) -> Option<&'static str> {
    if key.len() > MAX_KEY_BYTES {
        Some("is longer than 1024 bytes")
    } else if key.split('/').any(|segment| matches!(segment, "." | "..")) {
        Some("has a `.` or `..` segment")
    } else if key.chars().any(char::is_control) {
        Some("has a control character")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::client_allowing;

    /// An object of `output_upload.s3` with these fields over good ones.
    fn parse(fields: &Value) -> Result<Told, String> {
        let mut told = json!({
            "bucket": "pictures", "key": "a/cat.png", "region": "eu-west-1",
            "access_key_id": "AKID", "secret_access_key": "hunter2",
        });
        for (key, value) in fields.as_object().unwrap() {
            told[key] = value.clone();
        }
        Told::parse(told, &client_allowing(&[])).map_err(|error| error.to_string())
    }

    fn url(fields: &Value) -> String {
        let told = parse(fields).unwrap();
        told.bucket.object_url(&told.key).into()
    }

    #[test]
    fn objects_are_where_the_store_expects_them() {
        assert_eq!(url(&json!({})), "https://pictures.s3.eu-west-1.amazonaws.com/a/cat.png");
        assert_eq!(
            url(&json!({"path_style": true})),
            "https://s3.eu-west-1.amazonaws.com/pictures/a/cat.png"
        );
        assert_eq!(url(&json!({"bucket": "a.b"})), "https://s3.eu-west-1.amazonaws.com/a.b/a/cat.png");
        let china = json!({"region": "cn-north-1"});
        assert_eq!(url(&china), "https://pictures.s3.cn-north-1.amazonaws.com.cn/a/cat.png");
        let own = json!({"endpoint": "https://acc.r2.example/", "region": "auto", "session_token": null});
        assert_eq!(url(&own), "https://acc.r2.example/pictures/a/cat.png");
        let by_host = json!({"endpoint": "https://s3.example:8443", "path_style": false});
        assert_eq!(url(&by_host), "https://pictures.s3.example:8443/a/cat.png");
        assert_eq!(
            url(&json!({"key": "/a b/é%2e+?#&=~"})),
            "https://pictures.s3.eu-west-1.amazonaws.com//a%20b/%C3%A9%252e%2B%3F%23%26%3D~"
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (fields, key, problem) in [
            (json!({"acl": "hunter2"}), "acl", "is not known"),
            (json!({"bucket": null}), "bucket", "is missing"),
            (json!({"bucket": ""}), "bucket", "is empty"),
            (json!({"bucket": "a/../hunter2"}), "bucket", "is no name of a bucket"),
            (json!({"bucket": "x@hunter2"}), "bucket", "is no name of a bucket"),
            (json!({"region": "a.hunter2/"}), "region", "is no name of a region"),
            (json!({"key": "a/../hunter2"}), "key", "has a `.` or `..` segment"),
            (json!({"key": "hunter2\n"}), "key", "has a control character"),
            (json!({"key": "k".repeat(1025)}), "key", "is longer than 1024 bytes"),
            (json!({"key": 7}), "key", "is no text"),
            (json!({"path_style": "yes"}), "path_style", "is neither true nor false"),
            (json!({"secret_access_key": 7}), "secret_access_key", "is no text"),
            (json!({"endpoint": "ftp://hunter2"}), "endpoint", "is no http or https URL"),
            (json!({"endpoint": "http://10.0.0.1"}), "endpoint", "names an address that may not be reached"),
            (
                json!({"endpoint": "https://u:hunter2@s3.example"}),
                "endpoint",
                "names an address that may not be reached",
            ),
            (
                json!({"endpoint": "http://8.8.8.8", "path_style": false}),
                "path_style",
                "must be true for an endpoint that is an IP address",
            ),
        ] {
            assert_eq!(parse(&fields).map(drop), Err(format!("`output_upload.s3.{key}` {problem}")));
        }
        let nothing = Told::parse(json!("here"), &client_allowing(&[])).map(drop).unwrap_err();
        assert_eq!(nothing.to_string(), "`output_upload.s3` is no JSON object");
    }
}
