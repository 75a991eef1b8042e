//! What a store says, in the little XML that matters here.

use gen_worker_net::{HeaderMap, HttpResponse, NetError, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};

use crate::error::UploadError;

/// Largest answer that is read; each holds a few short fields.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// Longest error code that is believed to be one.
const MAX_CODE_BYTES: usize = 64;
/// What S3 says with a 400 of bytes that were late, lost or damaged on the way: the same ones may arrive the next time.
const LOST_ON_THE_WAY: [&str; 4] =
    ["BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentChecksumMismatch"];

/// The text of an answer.
pub(super) async fn text(answer: HttpResponse) -> Result<String, UploadError> {
    let body =
        answer.bytes(MAX_ANSWER_BYTES).await.map_err(|source| UploadError::S3 { source, code: None })?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Why a store that answered with no success did so.
pub(super) async fn refusal(answer: HttpResponse) -> UploadError {
    let (status, retry_after) = (answer.status(), answer.retry_after());
    let code = match text(answer).await {
        Ok(body) => code(&body),
        Err(_) => None,
    };
    let asks_again = code.as_deref().is_some_and(|code| LOST_ON_THE_WAY.contains(&code));
    let status = if asks_again { StatusCode::REQUEST_TIMEOUT } else { status };
    UploadError::S3 { source: NetError::Status { status, retry_after }, code }
}

/// The same for an answer that began as a success, which S3 does while it puts parts together.
pub(super) fn late_refusal(body: &str) -> UploadError {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    UploadError::S3 { source: NetError::Status { status, retry_after: None }, code: code(body) }
}

/// The store's own word for what went wrong. Anything else than a word is not passed on.
fn code(body: &str) -> Option<String> {
    let code = element(body, "Code")?;
    let is_word =
        (1..=MAX_CODE_BYTES).contains(&code.len()) && code.chars().all(|c| c.is_ascii_alphanumeric());
    is_word.then_some(code)
}

/// The text of the first element of this name.
pub(super) fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = text.replace("&quot;", "\"").replace("&#34;", "\"").replace("&apos;", "'");
    Some(plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

/// A text as an element's content.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What the store calls the version that it took.
pub(super) fn etag(said: &HeaderMap) -> Option<String> {
    said.get(header::ETAG)?.to_str().ok().map(str::to_owned)
}

/// A date as HTTP writes it.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// Whether this text names an error; what it says of it is a word. A text comes back as it was escaped.
///
/// # Panics
/// It does not.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(body: &str) -> bool {
    let _ = (element(body, "ETag"), http_date(body));
    let element = element(&format!("<E>{}</E>", escaped(body)), "E");
    assert_eq!(element.as_deref(), Some(body));
    code(body).is_some_and(|code| {
        assert!(code.chars().all(char::is_alphanumeric), "{code}");
        true
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/s3_answer");
        let answers =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let named = answers.filter(|answer| check(&String::from_utf8_lossy(answer))).count();
        assert!(named > 0, "{named}");
    }

    #[test]
    fn elements_are_found_and_unescaped() {
        let xml = r#"<?xml version="1.0"?><A xmlns="x"><ETag>&quot;a&amp;lt;-2&#34;</ETag><Key>k</Key></A>"#;
        assert_eq!(element(xml, "ETag").unwrap(), r#""a&lt;-2""#);
        assert_eq!(element(xml, "UploadId"), None);
        assert_eq!(element("<Code>x", "Code"), None);
        assert_eq!(element(&format!("<E>{}</E>", escaped("<a & b>")), "E").unwrap(), "<a & b>");
    }

    #[test]
    fn only_a_word_is_a_code() {
        assert_eq!(code("<Error><Code>NoSuchBucket</Code></Error>").unwrap(), "NoSuchBucket");
        for none in ["<html>", "<Code></Code>", "<Code>token hunter2</Code>"] {
            assert_eq!(code(none), None, "{none}");
        }
        assert_eq!(code(&format!("<Code>{}</Code>", "x".repeat(65))), None);
    }
}
