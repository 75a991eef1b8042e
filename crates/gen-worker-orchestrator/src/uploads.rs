//! Uploads to presigned addresses, and the public addresses where they are found after.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, Method, StatusCode, header},
    response::Response,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    auth::Now,
    http::App,
    http_error::{Body as JsonBody, HttpError},
    presign::Denied,
    serve::serve,
    store::{Mode, relative},
};

/// What a path segment need not escape (RFC 3986, unreserved), and the slash between segments.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    name: String,
    content_type: Option<String>,
}

/// Hands out an address; the answer can be used as `output_upload` as it is.
pub(crate) async fn presign(
    State(app): State<Arc<App>>,
    JsonBody(wanted): JsonBody<Wanted>,
) -> Result<Json<Value>, HttpError> {
    if relative(&wanted.name).is_none() {
        return Err(HttpError::usage("`name` must be a plain path"));
    }
    let content_type = wanted.content_type;
    let granted = app.grants.issue(&wanted.name, content_type.clone(), seconds());
    let granted = granted.ok_or_else(|| {
        let remedy = "try again when some have expired";
        HttpError::new(StatusCode::SERVICE_UNAVAILABLE, "capacity", "too many addresses are out", remedy)
    })?;
    let public_url = format!("{}/presigned/{}", app.base_url, utf8_percent_encode(&granted.key, PATH));
    let signed = content_type.map(|content_type| ("Content-Type".to_owned(), content_type.into()));
    Ok(Json(json!({
        "put_url": format!("{public_url}?expires={}&sig={}", granted.expires, granted.signature),
        "headers": signed.into_iter().collect::<Map<_, Value>>(),
        "public_url": public_url,
    })))
}

#[derive(Deserialize)]
pub(crate) struct Signature {
    expires: u64,
    sig: String,
}

pub(crate) async fn write(
    State(app): State<Arc<App>>,
    Path(key): Path<String>,
    query: Result<Query<Signature>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, HttpError> {
    let Query(Signature { expires, sig }) = query?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    app.grants.check(&key, expires, &sig, content_type, seconds()).map_err(|denied| match denied {
        Denied::Unknown => HttpError::forbidden("the signature is not valid"),
        Denied::Expired => HttpError::forbidden("the address has expired"),
        Denied::ContentType => HttpError::forbidden("another content type was signed"),
    })?;
    app.uploads.write(&key, body, Mode::Replace).await?;
    Ok(StatusCode::OK)
}

/// Whoever has the address may read: it cannot be guessed.
pub(crate) async fn read(
    State(app): State<Arc<App>>,
    Path(key): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    serve(&app.uploads.path(&key)?, &app.uploads.digests, &method, &headers).await
}

fn seconds() -> u64 {
    Now::read().unix_ms / 1000
}
