//! Runs as callers see them: what they ask for and how it stands.

use std::time::Duration;

use bytes::Bytes;
use gen_worker_core::{Algorithm, Digest, TraceContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A call of a function, as a caller asks for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunSubmission {
    /// The function's name.
    pub function: String,
    /// What it is called with: a JSON object.
    pub payload: Value,
    /// The caller's own id for the run: letters, digits, `-`, `_` and `.`, and not `key-` in front. The same id with the
    /// same request names the same run, so that asking twice is safe; all tenants share these names. `None`: the
    /// orchestrator chooses one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The deadline of each attempt in milliseconds; `None` or 0: the orchestrator's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Whose run it is; `None`: nobody's in particular.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// Which of the tenant's users asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Models the run will need; a worker that has them is preferred.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required_models: Vec<String>,
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RunState {
    /// It waits for a worker, perhaps for another try.
    Queued,
    /// A worker has it.
    Running,
    /// It ended well.
    Succeeded,
    /// It ended badly.
    Failed,
    /// It was told to stop.
    Canceled,
}

impl RunState {
    /// Whether nothing will change any more.
    pub fn is_terminal(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// Why a run, or one attempt of it, ended badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// The kind, such as `validation`.
    pub kind: String,
    /// For the end user.
    pub message: String,
    /// Whether another try may help.
    pub retryable: bool,
    /// For whoever runs the worker; empty: nothing more is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A run as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Which run.
    pub run_id: String,
    /// Which function.
    pub function: String,
    /// How it stands.
    pub state: RunState,
    /// The attempt that runs or ran last, from 1.
    pub attempt: i64,
    /// The worker that has or had it last; `None`: none yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub worker: Option<String>,
    /// Whose run it is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tenant_id: Option<String>,
    /// Which of the tenant's users asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_id: Option<String>,
    /// When it was asked for, in milliseconds since the Unix epoch.
    pub created_at_ms: u64,
    /// When its last attempt was given to a worker; `None`: not yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at_ms: Option<u64>,
    /// When it ended; `None`: not yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finished_at_ms: Option<u64>,
    /// What it gave, with bytes as base64 text; `None`: nothing, or not yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output: Option<Value>,
    /// Why it failed; `None`: it did not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<RunError>,
}

/// What a run is asked to do, checked, with its payload as the worker gets it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRequest {
    pub(crate) function: String,
    /// MessagePack. An engine stores it apart.
    #[serde(skip)]
    pub(crate) payload: Bytes,
    pub(crate) timeout: Option<Duration>,
    pub(crate) tenant_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) models: Vec<String>,
    pub(crate) retry: RetryPolicy,
    /// Below which span of the caller's it works; `None`: it said nothing, or nothing that can be passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trace: Option<Trace>,
}

/// A place in a trace, as it is passed on and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trace {
    pub(crate) parent: String,
    pub(crate) state: String,
}

impl Trace {
    /// From the headers of W3C Trace Context. What is none is ignored.
    pub(crate) fn of<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let trace = TraceContext::parse(header("traceparent")?, header("tracestate").unwrap_or_default())?;
        let state = trace.state().unwrap_or_default().to_owned();
        Some(Self { parent: trace.parent().to_owned(), state })
    }
}

impl RunRequest {
    /// Tells two requests apart. The payload's own bytes go in: no number takes a detour through another type. The trace does
    /// not: who asks again asks from another span.
    pub(crate) fn digest(&self) -> Digest {
        let rest =
            format!("{:?}", (&self.function, self.timeout, &self.tenant_id, &self.user_id, &self.models));
        Digest::of(Algorithm::Sha256, &[rest.as_bytes(), &self.payload].concat())
    }
}

#[cfg(test)]
impl RunRequest {
    /// A call of a function with nothing said but its name.
    pub(crate) fn of(function: &str) -> Self {
        Self {
            function: function.to_owned(),
            payload: Bytes::from_static(b"\x80"),
            timeout: None,
            tenant_id: None,
            user_id: None,
            models: Vec::new(),
            retry: RetryPolicy::new(3),
            trace: None,
        }
    }
}

/// When a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RetryPolicy {
    /// All attempts together.
    pub(crate) attempts: u32,
    /// The wait after the first failure, which grows by `factor` up to `longest`.
    pub(crate) first: Duration,
    pub(crate) factor: f64,
    pub(crate) longest: Duration,
    /// Kinds of failure after which there is no other try, whatever the worker says.
    pub(crate) final_kinds: Vec<String>,
}

impl RetryPolicy {
    pub(crate) fn new(attempts: u32) -> Self {
        Self {
            attempts,
            first: Duration::from_millis(500),
            factor: 2.0,
            longest: Duration::from_secs(30),
            final_kinds: Vec::new(),
        }
    }

    pub(crate) fn allows(&self, error: &RunError, failures: u32) -> bool {
        error.retryable && failures < self.attempts && !self.final_kinds.contains(&error.kind)
    }

    /// The wait after the n-th failure, n from 1.
    pub(crate) fn delay(&self, failures: u32) -> Duration {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let seconds = self.first.as_secs_f64() * self.factor.powi(exponent);
        Duration::try_from_secs_f64(seconds).map_or(self.longest, |delay| delay.min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest() {
        let policy = RetryPolicy::new(3);
        let waits = [1, 2, 3, 7, u32::MAX].map(|n| policy.delay(n).as_millis());
        assert_eq!(waits, [500, 1000, 2000, 30_000, 30_000]);
    }

    #[test]
    fn one_and_one_point_nought_are_different_requests() {
        let request = |payload: Value| RunRequest {
            payload: crate::convert::to_msgpack(&payload).into(),
            ..RunRequest::of("f")
        };
        let digest = |text: &str| request(serde_json::from_str(text).unwrap()).digest();
        assert_ne!(digest(r#"{"n": 1}"#), digest(r#"{"n": 1.0}"#));
        assert_eq!(digest(r#"{"n": 1}"#), digest(r#"{ "n":1 }"#));
    }
}
