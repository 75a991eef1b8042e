//! What an answer says of a file.

use std::ops::Range;

use gen_worker_core::{Algorithm, Digest};
use gen_worker_net::{HeaderName, HttpResponse, NetError, StatusCode, header};

use super::Fetch;
use crate::{
    error::HubError,
    part::{Part, Promise},
};

/// The digest that the hub promises, 64 hexadecimal digits.
pub(crate) static SHA256_HEADER: HeaderName = HeaderName::from_static("x-cozy-sha256");

/// The answer to the first request for a piece.
#[derive(Debug)]
pub(super) enum Answer {
    /// The piece that was asked for.
    Piece(HttpResponse),
    /// The whole file: the server knows no ranges, or another version.
    Whole(HttpResponse),
    /// The file is empty.
    Nothing,
}

/// A `Content-Range`: first byte, one after the last, and whole size if it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// Of `bytes 5-9/10`; the size may be `*`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (start, end) = (first.parse().ok()?, last.parse::<u64>().ok()?.checked_add(1)?);
        (start < end).then_some(Self { start, end, total: total.parse().ok() })
    }
}

impl Fetch {
    /// Tells what came for a piece.
    pub(super) fn judge(&self, response: HttpResponse, piece: &Range<u64>) -> Result<Answer, HubError> {
        let range = response.header(&header::CONTENT_RANGE);
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = range.and_then(ContentRange::parse).ok_or_else(|| self.wrong_range())?;
                if range.start != piece.start || range.end > piece.end {
                    return Err(self.wrong_range());
                }
                Ok(Answer::Piece(response))
            }
            StatusCode::RANGE_NOT_SATISFIABLE if piece.start == 0 && range == Some("bytes */0") => {
                match self.file.promise.size_bytes {
                    Some(expected) if expected > 0 => {
                        self.or_fail(Err(NetError::Size { expected, actual: 0 }))
                    }
                    Some(_) | None => Ok(Answer::Nothing),
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Err(self.wrong_range()),
            _ => Ok(Answer::Whole(self.file_of(response)?)),
        }
    }

    /// The answer, if it is a file. A success of another kind is none: 202 says that it is to come.
    pub(super) fn file_of(&self, response: HttpResponse) -> Result<HttpResponse, HubError> {
        let response = self.or_fail(response.into_success())?;
        match response.status() {
            StatusCode::OK | StatusCode::NON_AUTHORITATIVE_INFORMATION => Ok(response),
            status => self.or_fail(Err(NetError::Status { status, retry_after: None })),
        }
    }

    /// What is known of the whole file once an answer has come; `None`: the file is empty, or all of it was there.
    pub(super) fn promised(&self, part: &Part, response: Option<&HttpResponse>) -> Result<Promise, HubError> {
        let known = part.promise();
        let Some(response) = response else {
            return Ok(Promise { size_bytes: known.size_bytes.or(Some(0)), ..known });
        };
        let size_bytes = match response.status() {
            StatusCode::PARTIAL_CONTENT => total(response),
            _ => response.content_length(),
        };
        if let (Some(expected), Some(actual)) = (self.file.promise.size_bytes, size_bytes)
            && expected != actual
        {
            return self.or_fail(Err(NetError::Size { expected, actual }));
        }
        let promised = response.header(&SHA256_HEADER).and_then(sha256);
        let size_bytes = self.file.promise.size_bytes.or(size_bytes);
        if size_bytes.is_none() && response.status() == StatusCode::PARTIAL_CONTENT {
            return Err(self.wrong_range());
        }
        Ok(Promise { size_bytes, digest: self.file.promise.digest.or(promised) })
    }

    pub(super) fn wrong_range(&self) -> HubError {
        HubError::Range { model: self.model.to_string() }
    }
}

/// Whether a piece says that it is of another version than what is there.
pub(super) fn is_of_another(response: &HttpResponse, part: &Part) -> bool {
    differ(etag(response), part.etag()) || differ(total(response), part.promise().size_bytes)
}

/// Whether two are known and not the same.
fn differ<T: PartialEq>(told: Option<T>, known: Option<T>) -> bool {
    told.zip(known).is_some_and(|(told, known)| told != known)
}

/// The size of the whole file, as a piece says it.
fn total(response: &HttpResponse) -> Option<u64> {
    response.header(&header::CONTENT_RANGE).and_then(ContentRange::parse)?.total
}

/// The digest in a header; `None`: it is none.
pub(crate) fn sha256(digits: &str) -> Option<Digest> {
    Digest::from_hex(Algorithm::Sha256, digits.trim()).ok()
}

/// A validator that `If-Range` takes: a strong one.
pub(super) fn etag(response: &HttpResponse) -> Option<String> {
    response.header(&header::ETAG).filter(|etag| etag.starts_with('"')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood_or_refused() {
        let range = |text| ContentRange::parse(text).map(|range| (range.start, range.end, range.total));
        assert_eq!(range("bytes 5-9/10"), Some((5, 10, Some(10))));
        assert_eq!(range("bytes 5-9/*"), Some((5, 10, None)));
        for text in ["", "bytes */10", "items 5-9/10", "bytes x-9/10", "bytes 9-5/10", "bytes 5-/10"] {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
