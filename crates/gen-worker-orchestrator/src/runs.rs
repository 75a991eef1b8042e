//! The routes of runs: asked for, looked at, waited for, told to stop.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{FromRequestParts, Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    auth::{Caller, Now},
    convert,
    http::App,
    http_error::{Body, HttpError},
    intake::{IntakeError, Naming},
    queue::Canceled,
    run::{RunRequest, RunState, RunSubmission, RunView, Trace},
};

/// Longest wait for a result: shorter than the patience of clients and proxies.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Longest `Idempotency-Key`, in bytes.
const MAX_KEY: usize = 255;

/// The run that a path names, if it is there for the caller.
pub(crate) struct Known(pub(crate) String);

impl FromRequestParts<Arc<App>> for Known {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, HttpError> {
        let caller = Caller::from_request_parts(parts, app).await?;
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(run_id) = path.map_err(|_| HttpError::not_found("run"))?;
        if app.intake.knows(&caller, &run_id).await? {
            Ok(Self(run_id))
        } else {
            Err(HttpError::not_found("run"))
        }
    }
}

/// 202: it is new; 200: the same was asked for before. With a wait, as [`result`] answers.
pub(crate) async fn submit(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<Waiting>, QueryRejection>,
    headers: HeaderMap,
    Body(asked): Body<RunSubmission>,
) -> Result<Response, HttpError> {
    let Query(waiting) = query?;
    let payload = match asked.payload {
        Value::Null => json!({}),
        payload @ Value::Object(_) => payload,
        _ => return Err(HttpError::usage("`payload` must be an object")),
    };
    let naming = match (asked.run_id, key_of(&headers)?) {
        (Some(_), Some(_)) => {
            return Err(HttpError::usage("give a `run_id` or an `Idempotency-Key`, not both"));
        }
        (Some(run_id), None) => Naming::Chosen(run_id),
        (None, Some(key)) => Naming::by_key(&caller, key),
        (None, None) => Naming::Ours,
    };
    let tenant_id = caller.acts_for(asked.tenant_id).ok_or_else(HttpError::other_tenant)?;
    let request = RunRequest {
        function: asked.function,
        payload: convert::to_msgpack(&payload).into(),
        timeout: asked.timeout_ms.map(Duration::from_millis),
        tenant_id,
        user_id: asked.user_id,
        models: asked.required_models,
        retry: app.intake.retry(),
        trace: Trace::of(|name| headers.get(name).and_then(|value| value.to_str().ok())),
    };
    let (run_id, new) = app.intake.submit(naming, request).await?;
    let taken = |status| (status, Json(json!({"run_id": run_id}))).into_response();
    Ok(match waiting.time() {
        Duration::ZERO => taken(if new { StatusCode::ACCEPTED } else { StatusCode::OK }),
        wait => match stands_within(&app, &run_id, wait).await {
            Ok(stands) => stands.into_response(),
            // It was taken, and what has become of it the result route says, or why that is not known.
            Err(_) => taken(StatusCode::ACCEPTED),
        },
    })
}

fn key_of(headers: &HeaderMap) -> Result<Option<&str>, HttpError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len()));
    key.map(Some).ok_or_else(|| HttpError::usage("`Idempotency-Key` must have 1 to 255 printable characters"))
}

impl From<IntakeError> for HttpError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Invalid(message) => Self::usage(message),
            IntakeError::Refused(refusal) => refusal.into(),
            IntakeError::Canceled => {
                let message = "this run was canceled before it was asked for";
                Self::new(StatusCode::CONFLICT, "canceled", message, "ask under another run id")
            }
            IntakeError::NotStored => Self::internal(),
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Listing {
    /// How many runs at most, the newest; absent: all.
    limit: Option<usize>,
}

pub(crate) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<Listing>, QueryRejection>,
) -> Result<Json<Value>, HttpError> {
    let Query(Listing { limit }) = query?;
    let runs = app.broker().list(caller.tenant(), limit.unwrap_or(usize::MAX)).await?;
    Ok(Json(json!({"runs": runs})))
}

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Known(run_id): Known,
) -> Result<Json<RunView>, HttpError> {
    app.broker().view(&run_id).await?.map(Json).ok_or_else(|| HttpError::not_found("run"))
}

#[derive(Deserialize)]
pub(crate) struct Waiting {
    /// How long the answer may take when the run has not ended; at most a minute.
    #[serde(default)]
    wait_ms: u64,
}

impl Waiting {
    fn time(&self) -> Duration {
        Duration::from_millis(self.wait_ms).min(MAX_WAIT)
    }
}

/// 200: it has ended, and this is how; 202: it has not ended within the wait, and this is how it stands.
pub(crate) async fn result(
    State(app): State<Arc<App>>,
    Known(run_id): Known,
    query: Result<Query<Waiting>, QueryRejection>,
) -> Result<(StatusCode, Json<RunView>), HttpError> {
    let Query(waiting) = query?;
    stands_within(&app, &run_id, waiting.time()).await
}

async fn stands_within(
    app: &App,
    run_id: &str,
    wait: Duration,
) -> Result<(StatusCode, Json<RunView>), HttpError> {
    let ended = app.stop.run_until_cancelled(until_ended(app, run_id));
    let view = match timeout(wait, ended).await {
        Ok(Some(view)) => view?,
        // It is too early, or the orchestrator stops.
        Ok(None) | Err(_) => app.broker().view(run_id).await?.ok_or_else(|| HttpError::not_found("run"))?,
    };
    let status = if view.state.is_terminal() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(view)))
}

async fn until_ended(app: &App, run_id: &str) -> Result<RunView, HttpError> {
    let forgotten = || HttpError::not_found("run");
    let mut changed = app.broker().watch(run_id).await?.ok_or_else(forgotten)?;
    loop {
        changed.mark_unchanged();
        let view = app.broker().view(run_id).await?.ok_or_else(forgotten)?;
        if view.state.is_terminal() {
            return Ok(view);
        }
        if changed.changed().await.is_err() {
            // What it said was forgotten, not always the run.
            changed = app.broker().watch(run_id).await?.ok_or_else(forgotten)?;
        }
    }
}

/// 202 says that the run was asked to stop, not that it has; 200 that it had ended. A run that is not known yet is
/// refused when it is asked for.
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(run_id): Path<String>,
) -> Result<Response, HttpError> {
    let status = match app.intake.cancel(&caller, &run_id).await? {
        Some(Canceled::Ended) => StatusCode::OK,
        Some(Canceled::Waiting | Canceled::Running { .. }) => StatusCode::ACCEPTED,
        None => return Ok((StatusCode::ACCEPTED, Json(buried(run_id))).into_response()),
    };
    let view = app.broker().view(&run_id).await?.ok_or_else(|| HttpError::not_found("run"))?;
    Ok((status, Json(view)).into_response())
}

/// A run that was told to stop before it was asked for. Nobody has said yet what it is.
fn buried(run_id: String) -> RunView {
    RunView {
        run_id,
        function: String::new(),
        state: RunState::Canceled,
        attempt: 0,
        worker: None,
        tenant_id: None,
        user_id: None,
        created_at_ms: Now::read().unix_ms,
        started_at_ms: None,
        finished_at_ms: None,
        output: None,
        error: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_longer_than_a_minute() {
        let times = [0, 1, u64::MAX].map(|wait_ms| Waiting { wait_ms }.time());
        assert_eq!(times, [Duration::ZERO, Duration::from_millis(1), MAX_WAIT]);
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let key = |text: &str| {
            key_of(&HeaderMap::from_iter([("idempotency-key".parse().unwrap(), text.parse().unwrap())]))
                .map(|key| key.map(str::to_owned))
        };
        assert_eq!(key("a b"), Ok(Some("a b".to_owned())));
        assert_eq!(key_of(&HeaderMap::new()), Ok(None));
        assert!(key("").is_err() && key("é").is_err() && key(&"k".repeat(256)).is_err());
    }
}
