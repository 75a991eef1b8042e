//! An answer, read within bounds.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::time::{Instant, timeout_at};
use url::Url;

use crate::{
    error::{NetError, is_transient},
    pace::Pace,
};

/// An answer whose head has arrived.
pub struct HttpResponse {
    inner: reqwest::Response,
    pace: Pace,
    deadline: Option<Instant>,
}

impl HttpResponse {
    pub(crate) fn new(
        inner: reqwest::Response,
        pace: Pace,
        deadline: Option<Instant>,
    ) -> Result<Self, NetError> {
        let encoding = inner.headers().get(header::CONTENT_ENCODING);
        // What says no, or leads elsewhere, is heard by its status, however its page is packed.
        if inner.status().is_success()
            && encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
        {
            return Err(NetError::Encoded);
        }
        Ok(Self { inner, pace, deadline })
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// A header as text; `None`: it is absent or no text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Who answered, after redirects. It may carry a signature: not to be logged.
    pub fn url(&self) -> &Url {
        self.inner.url()
    }

    /// The announced size of the body in bytes.
    pub fn content_length(&self) -> Option<u64> {
        self.header(&header::CONTENT_LENGTH)?.parse().ok()
    }

    /// This answer, if its status is a success.
    ///
    /// # Errors
    /// [`NetError::Status`]: it is none.
    pub fn into_success(self) -> Result<Self, NetError> {
        if self.status().is_success() { Ok(self) } else { Err(self.status_error()) }
    }

    pub(crate) fn unless_transient(self) -> Result<Self, NetError> {
        if is_transient(self.status()) { Err(self.status_error()) } else { Ok(self) }
    }

    /// The next piece of the body; `None` after the last.
    ///
    /// # Errors
    /// The connection broke, the body ended early, nothing came for too long, or too little.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, NetError> {
        let asked = Instant::now();
        let until = asked + self.pace.window();
        let until = self.deadline.map_or(until, |deadline| deadline.min(until));
        let chunk = timeout_at(until, self.inner.chunk())
            .await
            .map_err(|_| NetError::Timeout)?
            .map_err(|error| NetError::from_reqwest(error, ""))?;
        let bytes = chunk.as_ref().map_or(0, Bytes::len);
        if chunk.is_some() && !self.pace.holds(asked, Instant::now(), bytes as u64) {
            return Err(NetError::TooSlow);
        }
        Ok(chunk)
    }

    /// The whole body, in memory.
    ///
    /// # Errors
    /// It has more than `max` bytes, or as [`chunk`](Self::chunk).
    pub async fn bytes(mut self, max: u64) -> Result<Bytes, NetError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() as u64 + chunk.len() as u64 > max {
                return Err(NetError::TooLarge { max });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The whole body, as JSON.
    ///
    /// # Errors
    /// It is not the JSON expected, or as [`bytes`](Self::bytes).
    pub async fn json<T: DeserializeOwned>(self, max: u64) -> Result<T, NetError> {
        let body = self.bytes(max).await?;
        serde_json::from_slice(&body).map_err(|source| NetError::Json { source })
    }

    /// How long the server asks to be left alone, in seconds or until a date; `None`: it does not say. A date is taken
    /// by the clock of the server, if it tells its time. Zero: it has passed.
    pub fn retry_after(&self) -> Option<Duration> {
        let told = self.header(&header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
        wait(self.header(&header::RETRY_AFTER)?.trim(), told.unwrap_or_else(SystemTime::now))
    }

    /// The JSON object that a service answers with, whatever the status; what is none comes from something in between.
    ///
    /// # Errors
    /// [`NetError::Foreign`]: it is no JSON object; [`NetError::Status`]: the service asks to be left alone for a while;
    /// or as [`bytes`](Self::bytes).
    pub async fn envelope(self, max: u64) -> Result<(StatusCode, Map<String, Value>), NetError> {
        let status = self.status();
        let response = self.unless_transient()?;
        let body = response.bytes(max).await?;
        let envelope = serde_json::from_slice(&body).map_err(|_| NetError::Foreign { status })?;
        Ok((status, envelope))
    }

    fn status_error(&self) -> NetError {
        NetError::Status { status: self.status(), retry_after: self.retry_after() }
    }
}

impl fmt::Debug for HttpResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpResponse({})", self.status())
    }
}

/// How long a `Retry-After` asks to wait.
fn wait(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_seconds_or_until_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sunday, 06-Nov-94 08:49:38 GMT", Some(1)),
            ("Sun Nov  6 08:49:38 1994", Some(1)),
            ("Sun, 06 Nov 1994 08:49:36 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(wait(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
