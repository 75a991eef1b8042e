//! The HTTP side: which routes there are, who may enter where, and how often. What stands behind a route has a module of
//! its own.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, StatusCode, header, request::Parts},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use gen_worker_core::{ByteLimit, Secret};
use gen_worker_status::MEDIA_TYPE;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::{Host, Url};

use crate::{
    auth::{Caller, Callers, admits, bearer},
    broker::Broker,
    dashboard, files,
    http_error::HttpError,
    hub,
    intake::Intake,
    openapi,
    presign::Grants,
    rate::RateLimit,
    runs, sse,
    store::Store,
    uploads,
};

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
    pub(crate) callers: Callers,
    pub(crate) rate: Arc<RateLimit>,
    pub(crate) worker_token: Option<Secret<String>>,
    pub(crate) max_body: ByteLimit,
    pub(crate) stop: CancellationToken,
}

impl App {
    pub(crate) fn broker(&self) -> &Broker {
        &self.intake.broker
    }
}

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    /// Callers, each as often as its rate allows.
    Callers,
    /// Callers and workers: models.
    Known,
    /// Whoever can reach it; what it needs it asks for itself.
    All,
}

type Route = (For, &'static str, MethodRouter<Arc<App>>);

/// The one table of routes; `openapi.json` describes each of them.
fn routes() -> Vec<Route> {
    vec![
        (For::Callers, "/v1/runs", post(runs::submit).get(runs::list)),
        (For::Callers, "/v1/runs/{run_id}", get(runs::show)),
        (For::Callers, "/v1/runs/{run_id}/result", get(runs::result)),
        (For::Callers, "/v1/runs/{run_id}/events", get(sse::follow)),
        (For::Callers, "/v1/runs/{run_id}/cancel", post(runs::cancel)),
        (For::Callers, "/v1/workers", get(workers)),
        (For::Callers, "/v1/workers/{worker_id}/drain", post(drain)),
        (For::Callers, "/v1/files", post(files::upload)),
        (For::Callers, "/v1/files/{*reference}", get(files::download)),
        (For::Callers, "/v1/presign", post(uploads::presign)),
        (For::Known, "/hub/{*path}", get(hub::model)),
        (For::All, "/api/v1/file/{*reference}", get(files::read).put(files::replace).post(files::create)),
        (For::All, "/presigned/{*key}", get(uploads::read).put(uploads::write)),
        (For::All, "/v1/openapi.json", get(openapi::document)),
        (For::All, "/healthz", get(|| async { "ok" })),
        (For::All, "/readyz", get(ready)),
        (For::All, "/metrics", get(metrics)),
        (For::All, "/", get(dashboard::page)),
        (For::All, "/dashboard/{part}", get(dashboard::part)),
    ]
}

/// All routes, each behind its door.
pub(crate) fn router(app: Arc<App>) -> Router {
    let limit = app.max_body.max().map(|max| usize::try_from(max).unwrap_or(usize::MAX));
    let behind = |door: For| {
        let routes = routes().into_iter().filter(|(of, ..)| *of == door);
        routes.fold(Router::new(), |router, (_, path, methods)| router.route(path, methods))
    };
    Router::new()
        .merge(behind(For::Callers).route_layer(from_fn_with_state(Arc::clone(&app), callers_only)))
        .merge(behind(For::Known).route_layer(from_fn_with_state(Arc::clone(&app), known_only)))
        .merge(behind(For::All))
        .fallback(|| async { HttpError::not_found("route") })
        .method_not_allowed_fallback(|| async {
            let message = "this route does not know the method";
            HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "usage", message, "see /v1/openapi.json")
        })
        .layer(limit.map_or_else(DefaultBodyLimit::disable, DefaultBodyLimit::max))
        .with_state(app)
}

async fn callers_only(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, HttpError> {
    let caller = app.callers.identify(token_of(request.headers())).ok_or_else(HttpError::credential)?;
    if app.callers.are_all() && !is_from_here(request.headers()) {
        return Err(HttpError::forbidden("without a token only this machine may call"));
    }
    app.rate.count(&caller, Instant::now()).map_err(HttpError::too_often)?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, HttpError> {
        parts.extensions.get().cloned().ok_or_else(HttpError::credential)
    }
}

/// Workers fetch models with their own token or with that of callers.
async fn known_only(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, HttpError> {
    let sent = token_of(request.headers());
    let open = app.callers.are_all() && app.worker_token.is_none();
    let is_worker = app.worker_token.is_some() && admits(app.worker_token.as_ref(), sent);
    let is_caller = !app.callers.are_all() && app.callers.identify(sent).is_some();
    if open || is_worker || is_caller { Ok(next.run(request).await) } else { Err(HttpError::credential()) }
}

/// The bearer token that a request carries.
pub(crate) fn token_of(headers: &HeaderMap) -> Option<&str> {
    bearer(headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()))
}

/// Whether no other web page sent this: not from another origin, and not under a name that was made to point here.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let local = |url: &str| match Url::parse(url).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    let host = text(header::HOST).map(|host| format!("http://{host}"));
    // A browser says so where it sends no origin, as for a picture on another page.
    let site = text(HeaderName::from_static("sec-fetch-site"));
    host.as_deref().is_none_or(local)
        && text(header::ORIGIN).is_none_or(|origin| host.as_deref() == Some(origin))
        && site.is_none_or(|site| matches!(site, "same-origin" | "none"))
}

/// 503 while no runs can be taken: others, if there are any, are to be asked meanwhile.
async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, HttpError> {
    app.broker().is_ready()?;
    Ok("ok")
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
    caller: Caller,
    Path(worker_id): Path<String>,
    query: Result<Query<Drain>, QueryRejection>,
) -> Result<StatusCode, HttpError> {
    let Query(Drain { deadline_ms }) = query?;
    if caller != Caller::Operator {
        return Err(HttpError::forbidden("workers are everybody's: only the API token may drain them"));
    }
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
        let check = |pairs: &[(&'static str, &'static str)]| {
            let pairs =
                pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
            is_from_here(&pairs.collect())
        };
        assert!(check(&[("host", "127.0.0.1:8081")]));
        assert!(check(&[("host", "localhost:8081"), ("origin", "http://localhost:8081")]));
        assert!(check(&[("host", "[::1]:8081")]));
        assert!(check(&[("host", "[::1]:8081"), ("sec-fetch-site", "same-origin")]));
        assert!(!check(&[("host", "rebound.example:8081")]));
        assert!(!check(&[("host", "127.0.0.1:8081"), ("origin", "https://page.example")]));
        assert!(!check(&[("host", "127.0.0.1:8081"), ("origin", "null")]));
        assert!(!check(&[("host", "127.0.0.1:8081"), ("sec-fetch-site", "cross-site")]));
        assert!(!check(&[("host", "127.0.0.1:8081"), ("sec-fetch-site", "same-site")]));
    }

    #[test]
    fn every_route_is_described_and_no_other() {
        let described = openapi::paths();
        let mut paths: Vec<_> = routes().into_iter().map(|(_, path, _)| path.replace("{*", "{")).collect();
        paths.sort();
        assert_eq!(described, paths);
    }
}
