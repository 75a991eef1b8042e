//! The HTTP side: who may enter where, and the routes of runs and workers. Files, uploads and models have their own
//! modules.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use gen_worker_core::Secret;
use gen_worker_status::MEDIA_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use crate::{
    auth::{admits, bearer},
    broker::Broker,
    convert, files,
    http_error::{Body, HttpError},
    hub,
    intake::{Intake, IntakeError},
    presign::Grants,
    queue::Canceled,
    run::{RunRequest, RunSubmission, RunView},
    sse,
    store::Store,
    uploads,
};

/// Largest JSON body; base64 makes it larger than what becomes of it.
const MAX_JSON: usize = 64 << 20;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) intake: Intake,
    pub(crate) files: Store,
    pub(crate) uploads: Store,
    pub(crate) grants: Grants,
    /// The folder of models, if one is served.
    pub(crate) models: Option<Store>,
    /// How others reach these routes, without a slash at the end.
    pub(crate) base_url: String,
    pub(crate) api_token: Option<Secret<String>>,
    pub(crate) worker_token: Option<Secret<String>>,
    pub(crate) stop: CancellationToken,
}

impl App {
    pub(crate) fn broker(&self) -> &Broker {
        &self.intake.broker
    }
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/v1/runs", post(submit).get(list))
        .route("/v1/runs/{run_id}", get(show))
        .route("/v1/runs/{run_id}/events", get(sse::follow))
        .route("/v1/runs/{run_id}/cancel", post(cancel))
        .route("/v1/workers", get(workers))
        .route("/v1/workers/{worker_id}/drain", post(drain))
        .route("/v1/presign", post(uploads::presign))
        .merge(files::api_routes())
        .route_layer(from_fn_with_state(Arc::clone(&app), callers_only));
    let models = Router::new()
        .route("/hub/{*path}", get(hub::model))
        .route_layer(from_fn_with_state(Arc::clone(&app), known_only));
    Router::new()
        .merge(api)
        .merge(models)
        .merge(files::worker_routes())
        .route("/presigned/{*key}", get(uploads::read).put(uploads::write))
        .route("/healthz", get(|| async { "ok" }))
        .route("/metrics", get(metrics))
        .fallback(|| async { HttpError::not_found("route") })
        .method_not_allowed_fallback(|| async {
            let message = "this route does not know the method";
            HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "usage", message, "see the list of routes")
        })
        .layer(DefaultBodyLimit::max(MAX_JSON))
        .with_state(app)
}

async fn callers_only(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, HttpError> {
    let wanted = app.api_token.as_ref();
    if !admits(wanted, token_of(request.headers())) {
        return Err(HttpError::credential());
    }
    if wanted.is_none() && !is_from_here(request.headers()) {
        return Err(HttpError::forbidden("without a token only this machine may call"));
    }
    Ok(next.run(request).await)
}

/// Workers fetch models with their own token or with that of callers.
async fn known_only(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, HttpError> {
    let tokens = [&app.api_token, &app.worker_token];
    let open = tokens.iter().all(|token| token.is_none());
    let sent = token_of(request.headers());
    let known = tokens.into_iter().flatten().any(|token| admits(Some(token), sent));
    if open || known { Ok(next.run(request).await) } else { Err(HttpError::credential()) }
}

/// The bearer token that a request carries.
pub(crate) fn token_of(headers: &HeaderMap) -> Option<&str> {
    bearer(headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()))
}

/// Whether no web page sent this: not from another origin, and not under a name that was made to point here.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let local = |url: &str| match Url::parse(url).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    let host = text(header::HOST).map(|host| format!("http://{host}"));
    host.as_deref().is_none_or(local)
        && text(header::ORIGIN).is_none_or(|origin| host.as_deref() == Some(origin))
}

async fn submit(
    State(app): State<Arc<App>>,
    Body(asked): Body<RunSubmission>,
) -> Result<Response, HttpError> {
    let payload = match asked.payload {
        Value::Null => json!({}),
        payload @ Value::Object(_) => payload,
        _ => return Err(HttpError::usage("`payload` must be an object")),
    };
    let request = RunRequest {
        function: asked.function,
        payload: convert::to_msgpack(&payload).into(),
        timeout: asked.timeout_ms.map(Duration::from_millis),
        tenant_id: asked.tenant_id,
        user_id: asked.user_id,
        models: asked.required_models,
        retry: app.intake.retry(),
    };
    let (run_id, new) = app.intake.submit(asked.run_id, request).await?;
    let status = if new { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(json!({"run_id": run_id}))).into_response())
}

impl From<IntakeError> for HttpError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Invalid(message) => Self::usage(message),
            IntakeError::Refused(refusal) => refusal.into(),
        }
    }
}

async fn list(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"runs": app.broker().list().await}))
}

async fn show(State(app): State<Arc<App>>, Path(run_id): Path<String>) -> Result<Json<RunView>, HttpError> {
    let view = app.broker().view(&run_id).await;
    view.map(Json).ok_or_else(|| HttpError::not_found("run"))
}

/// 202 says that the run was asked to stop, not that it has.
async fn cancel(State(app): State<Arc<App>>, Path(run_id): Path<String>) -> Result<Response, HttpError> {
    let canceled = app.broker().cancel(&run_id).await?.ok_or_else(|| HttpError::not_found("run"))?;
    let status = match canceled {
        Canceled::Ended => StatusCode::OK,
        Canceled::Waiting | Canceled::Running { .. } => StatusCode::ACCEPTED,
    };
    Ok((status, show(State(app), Path(run_id)).await?).into_response())
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], app.broker().metrics().await).into_response()
}

async fn workers(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"workers": app.broker().workers()}))
}

#[derive(Deserialize)]
struct Drain {
    /// Time left for what runs; 0: no limit is set.
    #[serde(default)]
    deadline_ms: u64,
}

async fn drain(
    State(app): State<Arc<App>>,
    Path(worker_id): Path<String>,
    query: Result<Query<Drain>, QueryRejection>,
) -> Result<StatusCode, HttpError> {
    let Query(Drain { deadline_ms }) = query?;
    match app.broker().drain(&worker_id, Duration::from_millis(deadline_ms)) {
        Some(true) => Ok(StatusCode::ACCEPTED),
        Some(false) => {
            Err(HttpError::conflict("this worker cannot be told to drain", "stop it on its machine"))
        }
        None => Err(HttpError::not_found("worker")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_page_is_told_from_a_program() {
        let check = |pairs: &[(header::HeaderName, &'static str)]| {
            let pairs = pairs.iter().cloned().map(|(name, value)| (name, value.parse().unwrap()));
            is_from_here(&pairs.collect())
        };
        assert!(check(&[(header::HOST, "127.0.0.1:8081")]));
        assert!(check(&[(header::HOST, "localhost:8081"), (header::ORIGIN, "http://localhost:8081")]));
        assert!(check(&[(header::HOST, "[::1]:8081")]));
        assert!(!check(&[(header::HOST, "rebound.example:8081")]));
        assert!(!check(&[(header::HOST, "127.0.0.1:8081"), (header::ORIGIN, "https://page.example")]));
        assert!(!check(&[(header::HOST, "127.0.0.1:8081"), (header::ORIGIN, "null")]));
    }
}
