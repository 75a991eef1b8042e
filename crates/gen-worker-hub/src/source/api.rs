//! Questions to a service that answers in JSON objects.

use gen_worker_core::{ModelRef, Secret, TraceContext};
use gen_worker_net::{HttpClient, Method, NetError, StatusCode, Trust};
use serde_json::{Map, Value};
use url::Url;

use crate::error::HubError;

/// Largest answer that is read; a list of 50,000 files has about this size.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// How much is shown of what a service says.
const MAX_SAID_CHARS: usize = 200;

/// Asks about one model.
pub(crate) struct Api<'a> {
    pub(crate) client: &'a HttpClient,
    pub(crate) model: &'a ModelRef,
    /// The credential of the model's source.
    pub(crate) token: Option<&'a Secret<String>>,
    pub(crate) trace: Option<&'a TraceContext>,
}

/// The service's own answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) object: Map<String, Value>,
}

impl Api<'_> {
    /// The service's answer, whatever its status. What is no JSON object is not the service's, and is asked for again.
    pub(crate) async fn ask(&self, url: &Url) -> Result<Answer, HubError> {
        let attempt = || self.attempt(url);
        let answer = self.client.retry(attempt, |error| Some(error)).await;
        answer.map_err(|source| self.failed(source))
    }

    /// The service's answer; `None`: what answered does not know the question.
    pub(crate) async fn probe(&self, url: &Url) -> Result<Option<Answer>, HubError> {
        let attempt = || async {
            match self.attempt(url).await {
                Err(NetError::Foreign { status }) if does_not_know(status) => Ok(None),
                answer => answer.map(Some),
            }
        };
        let answer = self.client.retry(attempt, |error| Some(error)).await;
        Ok(answer.map_err(|source| self.failed(source))?.filter(|answer| !does_not_know(answer.status)))
    }

    /// The object of an answer that is a success.
    pub(crate) fn success(&self, answer: Answer) -> Result<Map<String, Value>, HubError> {
        let model = self.model.to_string();
        match answer.status.as_u16() {
            200..=299 => Ok(answer.object),
            404 | 410 => Err(HubError::NotFound { model }),
            status @ (401 | 403) => Err(HubError::Refused { model, status }),
            status => Err(HubError::Denied { model, status, said: said(&answer.object) }),
        }
    }

    pub(crate) fn listing(&self, reason: impl Into<String>) -> HubError {
        HubError::Listing { model: self.model.to_string(), reason: reason.into() }
    }

    async fn attempt(&self, url: &Url) -> Result<Answer, NetError> {
        let mut request = self.client.request(Method::GET, url.clone(), Trust::Operator).traced(self.trace);
        if let Some(token) = self.token {
            request = request.bearer(token);
        }
        let (status, object) = request.send().await?.envelope(MAX_ANSWER_BYTES).await?;
        Ok(Answer { status, object })
    }

    fn failed(&self, source: NetError) -> HubError {
        HubError::Fetch { model: self.model.to_string(), source }
    }
}

/// Whether this is how a server answers that has no such route.
fn does_not_know(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 405 | 501)
}

/// The sentence in an answer that is no success, on one line.
fn said(object: &Map<String, Value>) -> String {
    let error = object.get("error").or_else(|| object.get("message")).or_else(|| object.get("detail"));
    let text = match error {
        Some(Value::Object(error)) => error.get("message").and_then(Value::as_str),
        Some(error) => error.as_str(),
        None => None,
    };
    let line = text.unwrap_or("nothing more").chars().map(|c| if c.is_control() { ' ' } else { c });
    line.take(MAX_SAID_CHARS).collect()
}

/// The first of these keys that holds a text with something in it.
pub(crate) fn text<'a>(object: &'a Map<String, Value>, keys: &[&str]) -> Option<&'a str> {
    let texts = keys.iter().filter_map(|key| object.get(*key)?.as_str());
    texts.map(str::trim).find(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_service_says_is_one_short_line() {
        for (object, sentence) in [
            (json!({"error": "no\nsuch tag"}), "no such tag"),
            (json!({"error": {"code": "x", "message": "gone"}}), "gone"),
            (json!({"detail": "why"}), "why"),
            (json!({"status": 409}), "nothing more"),
        ] {
            assert_eq!(said(object.as_object().unwrap()), sentence);
        }
        let long = json!({"error": "é".repeat(1000)});
        assert_eq!(said(long.as_object().unwrap()).chars().count(), MAX_SAID_CHARS);
    }
}
