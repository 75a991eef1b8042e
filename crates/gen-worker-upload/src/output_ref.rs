//! A reference proven to lie under its run's own prefix.

use gen_worker_core::RunId;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::error::UploadError;

/// Longest reference, in bytes: the longest key of S3-compatible stores.
const MAX_BYTES: usize = 1024;

/// All but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// `runs/<run_id>/outputs/…`, without a segment that could lead elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OutputRef(String);

impl OutputRef {
    /// Proves a reference.
    pub(crate) fn parse(run_id: &RunId, text: &str) -> Result<Self, UploadError> {
        match problem(run_id, text) {
            Some(problem) => Err(UploadError::Reference { problem }),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The reference as it was given.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The reference as part of a URL's path.
    pub(crate) fn to_url_path(&self) -> String {
        let segments: Vec<String> =
            self.0.split('/').map(|segment| utf8_percent_encode(segment, RESERVED).to_string()).collect();
        segments.join("/")
    }
}

fn problem(run_id: &RunId, text: &str) -> Option<&'static str> {
    let prefix = format!("runs/{run_id}/outputs/");
    if text.len() > MAX_BYTES {
        Some("is longer than 1024 bytes")
    } else if !text.starts_with(&prefix) {
        Some("must start with 'runs/<run_id>/outputs/'")
    } else if text.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        Some("has an empty, `.` or `..` segment")
    } else if text.chars().any(|c| c == '\\' || c.is_control()) {
        Some("has a backslash or a control character")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(run_id: &str, text: &str) -> Result<OutputRef, UploadError> {
        OutputRef::parse(&RunId::parse(run_id).unwrap(), text)
    }

    #[test]
    fn what_lies_under_the_prefix_is_proven() {
        let proven = parse("r1", "runs/r1/outputs/a b/é%2e?#…~x.png").unwrap();
        assert_eq!(proven.to_url_path(), "runs/r1/outputs/a%20b/%C3%A9%252e%3F%23%E2%80%A6~x.png");
        assert!(parse("r1", "runs/r1/outputs/..a/b..").is_ok());
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        let long = format!("runs/r1/outputs/{}", "x".repeat(1024));
        for text in [
            "",
            "x.png",
            "runs/r2/outputs/x",
            "runs/r1/outputsx",
            "/runs/r1/outputs/x",
            "runs/r1/outputs/",
            "runs/r1/outputs/../x",
            "runs/r1/outputs/./x",
            "runs/r1/outputs/a//x",
            "runs/r1/outputs/a\\..\\x",
            "runs/r1/outputs/a\nb",
            "runs/r1/outputs/a/",
            &long,
        ] {
            assert!(parse("r1", text).is_err(), "{text}");
        }
        assert!(parse("../r2", "runs/../r2/outputs/x").is_err());
    }
}
