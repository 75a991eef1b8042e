//! Requests for one object, signed one by one.

use std::sync::atomic::{AtomicI64, Ordering};

use gen_worker_core::Secret;
use gen_worker_net::{HeaderName, HeaderValue, HttpClient, HttpRequest, Method, Trust};
use jiff::{SignedDuration, Timestamp};
use rusty_s3::{Bucket, signing};
use url::Url;

use super::{answer::http_date, told::Told};

/// How long a signature is good for. It is checked when a request begins; each try has a new one.
const EXPIRES_SECONDS: u64 = 3600;
/// Clocks that differ by less are no reason to refuse a signature: stores allow for 15 minutes.
const SKEW_SECONDS: i64 = 60;

/// Signs requests for one object, by the store's clock.
pub(super) struct Signer {
    bucket: Bucket,
    key: String,
    access_key_id: String,
    secret_access_key: Secret<String>,
    session_token: Option<Secret<String>>,
    /// How many seconds the store's clock is ahead of this machine's.
    ahead: AtomicI64,
}

/// What is asked of the store, but for its body.
pub(super) struct Question {
    pub(super) method: rusty_s3::Method,
    pub(super) query: Vec<(&'static str, String)>,
    /// All are signed; names are in lower case.
    pub(super) headers: Vec<(&'static str, String)>,
}

impl Signer {
    pub(super) fn new(told: Told) -> Self {
        Self {
            bucket: told.bucket,
            key: told.key,
            access_key_id: told.access_key_id,
            secret_access_key: told.secret_access_key,
            session_token: told.session_token,
            ahead: AtomicI64::new(0),
        }
    }

    pub(super) fn bucket(&self) -> &str {
        self.bucket.name()
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The object's address, unsigned.
    pub(super) fn url(&self) -> Url {
        self.bucket.object_url(&self.key)
    }

    /// A request that is signed at this moment.
    pub(super) fn request(&self, client: &HttpClient, question: &Question) -> HttpRequest {
        let url = self.sign(question, Timestamp::now());
        let request = client.request(method(question.method), url, Trust::Payload);
        question.headers.iter().fold(request, |request, (name, value)| {
            let value = HeaderValue::from_str(value).expect("headers are checked before they are asked for");
            request.header(HeaderName::from_static(name), value)
        })
    }

    fn sign(&self, question: &Question, now: Timestamp) -> Url {
        let ahead = SignedDuration::from_secs(self.ahead.load(Ordering::Relaxed));
        let sorted = |pairs: &[(&'static str, String)]| {
            let mut pairs = pairs.to_vec();
            pairs.sort();
            pairs
        };
        let (query, headers) = (sorted(&question.query), sorted(&question.headers));
        signing::sign(
            &now.saturating_add(ahead).expect("a duration in seconds has no calendar"),
            question.method,
            self.url(),
            &self.access_key_id,
            self.secret_access_key.expose(),
            self.session_token.as_ref().map(|token| token.expose().as_str()),
            self.bucket.region(),
            EXPIRES_SECONDS,
            query.iter().map(|(name, value)| (*name, value.as_str())),
            headers.iter().map(|(name, value)| (*name, value.as_str())),
        )
    }

    /// Takes the time from an answer's `Date` if this machine's is off; says whether it was.
    pub(super) fn set_clock(&self, date: Option<&str>) -> bool {
        let Some(ahead) = date.and_then(|date| seconds_ahead(date, Timestamp::now())) else {
            return false;
        };
        let before = self.ahead.swap(ahead, Ordering::Relaxed);
        (ahead - before).abs() > SKEW_SECONDS
    }
}

/// How many seconds the clock that wrote an HTTP date is ahead of `now`.
fn seconds_ahead(date: &str, now: Timestamp) -> Option<i64> {
    Some(http_date(date)?.as_second() - now.as_second())
}

fn method(method: rusty_s3::Method) -> Method {
    match method {
        rusty_s3::Method::Head => Method::HEAD,
        rusty_s3::Method::Get => Method::GET,
        rusty_s3::Method::Post => Method::POST,
        rusty_s3::Method::Put => Method::PUT,
        rusty_s3::Method::Delete => Method::DELETE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::client;

    #[test]
    fn each_time_has_a_signature_of_its_own() {
        let told = serde_json::json!({
            "bucket": "b", "key": "k", "region": "r", "access_key_id": "AKID", "secret_access_key": "hunter2",
        });
        let signer = Signer::new(Told::parse(told, &client()).unwrap());
        let question = Question { method: rusty_s3::Method::Put, query: Vec::new(), headers: Vec::new() };
        let signed = |time: &str| signer.sign(&question, time.parse().unwrap());
        let (first, second) = (signed("2015-10-21T07:28:00Z"), signed("2015-10-21T07:28:01Z"));
        assert_ne!(first, second);
        let date = "Wed, 21 Oct 2015 08:28:00 GMT";
        let ahead = seconds_ahead(date, "2015-10-21T07:28:00Z".parse().unwrap()).unwrap();
        signer.ahead.store(-ahead, Ordering::Relaxed);
        assert_eq!(signed("2015-10-21T08:28:00Z"), first);
    }

    #[test]
    fn an_http_date_says_how_far_ahead_a_clock_is() {
        let now = "2015-10-21T07:28:00Z".parse().unwrap();
        assert_eq!(seconds_ahead("Wed, 21 Oct 2015 08:28:00 GMT", now), Some(3600));
        assert_eq!(seconds_ahead("Wed, 21 Oct 2015 07:27:59 GMT", now), Some(-1));
        assert_eq!(seconds_ahead("yesterday", now), None);
    }
}
