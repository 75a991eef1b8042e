//! One file over HTTP: whole or a range of it, with its size, digest and type.

use std::{fs::Metadata, io::SeekFrom, ops::Range, path::Path};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};
use tokio_util::io::ReaderStream;

use crate::{digests::Digests, http_error::HttpError};

pub(crate) const SHA256: HeaderName = HeaderName::from_static("x-cozy-sha256");
pub(crate) const SIZE_BYTES: HeaderName = HeaderName::from_static("x-cozy-size-bytes");
pub(crate) const MIME_TYPE: HeaderName = HeaderName::from_static("x-cozy-mime-type");

/// What a browser is about to do with what it asks for.
const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");

/// To run it. The dashboard is of the same origin as the files, and no file may become a script of it.
const RUN: [&str; 8] =
    ["audioworklet", "paintworklet", "script", "serviceworker", "sharedworker", "style", "worker", "xslt"];

/// How much is read from disk at once.
const CHUNK: usize = 256 << 10;

/// What part of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range(Range<u64>),
    Unsatisfiable,
}

/// The media type that a file's name says.
pub(crate) fn mime_of(path: &Path) -> String {
    mime_guess::from_path(path).first_or_octet_stream().to_string()
}

/// Answers a `GET` or `HEAD` for a file.
pub(crate) async fn serve(
    path: &Path,
    digests: &Digests,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, HttpError> {
    if text(headers, FETCH_DEST).is_some_and(|purpose| RUN.contains(&purpose)) {
        return Err(HttpError::forbidden("a stored file is not run"));
    }
    let missing = |_| HttpError::not_found("file");
    let mut file = File::open(path).await.map_err(missing)?;
    let metadata = file.metadata().await.map_err(missing)?;
    if !metadata.is_file() {
        return Err(HttpError::not_found("file"));
    }
    let digest = digests.of(path, &metadata).await.ok_or_else(HttpError::internal)?;
    let etag = format!("\"{digest}\"");
    let mut answer = Response::new(Body::empty());
    describe(answer.headers_mut(), path, &metadata, &digest, &etag)?;
    if text(headers, header::IF_NONE_MATCH).is_some_and(|known| known.contains(&etag)) {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(answer);
    }
    let size = metadata.len();
    let range = match part(headers, size, &etag) {
        Part::Whole => 0..size,
        Part::Range(range) => {
            let of = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            answer.headers_mut().insert(header::CONTENT_RANGE, value(&of)?);
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
            range
        }
        Part::Unsatisfiable => {
            let of = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, of).into_response());
        }
    };
    let length = range.end - range.start;
    answer.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    if method != Method::HEAD {
        file.seek(SeekFrom::Start(range.start)).await.map_err(|_| HttpError::internal())?;
        *answer.body_mut() = Body::from_stream(ReaderStream::with_capacity(file.take(length), CHUNK));
    }
    Ok(answer)
}

fn describe(
    headers: &mut HeaderMap,
    path: &Path,
    metadata: &Metadata,
    digest: &str,
    etag: &str,
) -> Result<(), HttpError> {
    let mime_type = value(&mime_of(path))?;
    headers.insert(header::CONTENT_TYPE, mime_type.clone());
    headers.insert(MIME_TYPE, mime_type);
    headers.insert(SIZE_BYTES, metadata.len().into());
    headers.insert(SHA256, value(digest)?);
    headers.insert(header::ETAG, value(etag)?);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // What a function wrote is never run by a browser that opens it.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    Ok(())
}

fn value(text: &str) -> Result<HeaderValue, HttpError> {
    HeaderValue::from_str(text).map_err(|_| HttpError::internal())
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// Several ranges, or what is no range, are answered with the whole file, as RFC 9110 allows.
fn part(headers: &HeaderMap, size: u64, etag: &str) -> Part {
    if text(headers, header::IF_RANGE).is_some_and(|version| version != etag) {
        return Part::Whole;
    }
    let range = text(headers, header::RANGE).and_then(|range| range.strip_prefix("bytes="));
    let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
        return Part::Whole;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..size.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return Part::Whole,
    };
    if range.is_empty() { Part::Unsatisfiable } else { Part::Range(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_defines_them() {
        for (range, expected) in [
            ("bytes=0-3", Part::Range(0..4)),
            ("bytes=4-", Part::Range(4..10)),
            ("bytes=-3", Part::Range(7..10)),
            ("bytes=-30", Part::Range(0..10)),
            ("bytes=8-99", Part::Range(8..10)),
            ("bytes=10-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=3-1", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("lines=0-1", Part::Whole),
        ] {
            let headers = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static(range))]);
            assert_eq!(part(&headers, 10, "\"e\""), expected, "{range}");
        }
    }

    #[test]
    fn a_range_of_another_version_is_the_whole_file() {
        let headers = HeaderMap::from_iter([
            (header::RANGE, HeaderValue::from_static("bytes=4-")),
            (header::IF_RANGE, HeaderValue::from_static("\"old\"")),
        ]);
        assert_eq!(part(&headers, 10, "\"new\""), Part::Whole);
        assert_eq!(part(&headers, 10, "\"old\""), Part::Range(4..10));
    }
}
