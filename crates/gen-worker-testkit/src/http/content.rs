//! A file as an HTTP server gives it: whole or a range, sound or with a fault.

use std::{io, ops::Range};

use axum::{
    body::Body,
    http::{HeaderMap, Method, Response, StatusCode, header, response::Builder},
};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use gen_worker_core::{Algorithm, Digest};

use super::Fault;

/// A file that a peer keeps.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    pub(crate) content_type: String,
}

impl Content {
    pub(crate) fn new(bytes: impl Into<Bytes>, content_type: &str) -> Self {
        Self { bytes: bytes.into(), content_type: content_type.to_owned() }
    }

    /// The SHA-256, 64 hexadecimal digits.
    pub(crate) fn sha256(&self) -> String {
        Digest::of(Algorithm::Sha256, &self.bytes).hex()
    }

    /// The answer to a GET or HEAD.
    pub(crate) fn answer(&self, method: &Method, headers: &HeaderMap, faults: &[Fault]) -> Response<Body> {
        let whole = 0..self.bytes.len();
        let asked = match faults.contains(&Fault::IgnoreRange) {
            true => None,
            false => headers.get(header::RANGE).and_then(|range| parse_range(range.to_str().ok()?)),
        };
        let range = match asked.filter(|_| self.same_version(headers)) {
            Some((first, _)) if first >= whole.end => return self.unsatisfiable(),
            Some((first, last)) => {
                first..last.map_or(whole.end, |last| whole.end.min(last.saturating_add(1)))
            }
            None => return self.send(StatusCode::OK, whole, method, faults),
        };
        self.send(StatusCode::PARTIAL_CONTENT, range, method, faults)
    }

    /// Whether an `If-Range`, if there is one, names this content.
    fn same_version(&self, headers: &HeaderMap) -> bool {
        headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == self.etag().as_bytes())
    }

    fn etag(&self) -> String {
        format!("\"{}\"", &self.sha256()[..16])
    }

    fn unsatisfiable(&self) -> Response<Body> {
        let builder = Response::builder()
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
            .header(header::CONTENT_RANGE, format!("bytes */{}", self.bytes.len()));
        finish(builder, Body::empty())
    }

    fn send(
        &self,
        status: StatusCode,
        range: Range<usize>,
        method: &Method,
        faults: &[Fault],
    ) -> Response<Body> {
        let mut builder = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, &self.content_type)
            .header(header::CONTENT_LENGTH, range.len())
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, self.etag())
            .header("X-Cozy-Size-Bytes", self.bytes.len())
            .header("X-Cozy-Mime-Type", &self.content_type);
        if !faults.contains(&Fault::NoDigest) {
            builder = builder.header("X-Cozy-SHA256", self.sha256());
        }
        if status == StatusCode::PARTIAL_CONTENT {
            let shown = format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), self.bytes.len());
            builder = builder.header(header::CONTENT_RANGE, shown);
        }
        let body = if method == Method::HEAD { Body::empty() } else { body(self.bytes.slice(range), faults) };
        finish(builder, body)
    }
}

fn finish(builder: Builder, body: Body) -> Response<Body> {
    builder.body(body).expect("a file's headers are plain text")
}

/// `bytes=<first>-[<last>]`, both included; anything else is no range.
fn parse_range(text: &str) -> Option<(usize, Option<usize>)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
    let first = first.parse().ok()?;
    last.is_none_or(|last| first <= last).then_some((first, last))
}

fn body(mut bytes: Bytes, faults: &[Fault]) -> Body {
    for fault in faults {
        match fault {
            Fault::Corrupt(at) => bytes = corrupted(&bytes, *at),
            Fault::Truncate(length) if *length < bytes.len() => return truncated(bytes.slice(..*length)),
            _ => {}
        }
    }
    Body::from(bytes)
}

fn corrupted(bytes: &[u8], at: usize) -> Bytes {
    let mut bytes = BytesMut::from(bytes);
    if let Some(byte) = bytes.get_mut(at) {
        *byte = !*byte;
    }
    bytes.freeze()
}

fn truncated(bytes: Bytes) -> Body {
    let end = stream::once(async {
        // The server writes out what it has while it waits; an error at once would take it along.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    Body::from_stream(stream::iter([Ok(bytes)]).chain(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ranges() {
        assert_eq!(parse_range("bytes=3-"), Some((3, None)));
        assert_eq!(parse_range("bytes=3-3"), Some((3, Some(3))));
        for none in ["bytes=-3", "bytes=4-3", "items=1-2", "bytes=1-2,4-5", ""] {
            assert_eq!(parse_range(none), None, "{none}");
        }
    }
}
