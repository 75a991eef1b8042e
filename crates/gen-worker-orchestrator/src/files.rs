//! The file API: what runs save and what callers hand in. Each tenant has a folder of its own, and a token or a caller
//! names the tenant before a reference is looked at: there is no reference to another tenant's file.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, Method},
    response::Response,
    routing::{get, post},
};
use gen_worker_core::{Algorithm, AssetRef, Digest, TenantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    http::{App, token_of},
    http_error::HttpError,
    queue::FileScope,
    serve::{mime_of, serve},
    store::{Mode, relative},
};

/// For runs, with the token that each is given.
pub(crate) fn worker_routes() -> Router<Arc<App>> {
    let own = get(read).put(replace).post(create);
    Router::new().route("/api/v1/file/{*reference}", own)
}

/// For callers.
pub(crate) fn api_routes() -> Router<Arc<App>> {
    Router::new().route("/v1/files", post(upload)).route("/v1/files/{*reference}", get(download))
}

/// The tenant's file of this reference. A tenant's name may be any text, so its folder is named by a digest.
fn place(tenant_id: Option<&str>, reference: &str) -> String {
    let folder = match tenant_id {
        None => "local".to_owned(),
        Some(tenant) => format!("tenant-{}", Digest::of(Algorithm::Sha256, tenant.as_bytes()).hex()),
    };
    format!("{folder}/{reference}")
}

async fn scope(app: &App, headers: &HeaderMap) -> Result<FileScope, HttpError> {
    let token = token_of(headers).ok_or_else(HttpError::credential)?;
    app.broker().file_scope(token).await.ok_or_else(HttpError::credential)
}

async fn read(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let scope = scope(&app, &headers).await?;
    let path = app.files.path(&place(scope.tenant_id.as_deref(), &reference))?;
    serve(&path, &app.files.digests, &method, &headers).await
}

async fn replace(
    app: State<Arc<App>>,
    reference: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<AssetRef>, HttpError> {
    save(app, reference, headers, body, Mode::Replace).await
}

async fn create(
    app: State<Arc<App>>,
    reference: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<AssetRef>, HttpError> {
    save(app, reference, headers, body, Mode::CreateOnly).await
}

async fn save(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
    headers: HeaderMap,
    body: Body,
    mode: Mode,
) -> Result<Json<AssetRef>, HttpError> {
    let FileScope { run_id, tenant_id } = scope(&app, &headers).await?;
    if !reference.starts_with(&format!("runs/{run_id}/outputs/")) {
        return Err(HttpError::forbidden("a run writes below its own `runs/<run_id>/outputs/` only"));
    }
    store(&app, tenant_id, reference, body, mode).await
}

async fn store(
    app: &App,
    tenant_id: Option<String>,
    reference: String,
    body: Body,
    mode: Mode,
) -> Result<Json<AssetRef>, HttpError> {
    let written = app.files.write(&place(tenant_id.as_deref(), &reference), body, mode).await?;
    Ok(Json(AssetRef {
        mime_type: Some(mime_of(reference.as_ref())),
        reference,
        tenant_id,
        size_bytes: Some(written.size_bytes),
        sha256: Some(written.sha256),
    }))
}

#[derive(Deserialize)]
struct Upload {
    name: String,
    tenant_id: Option<String>,
}

/// Stores what a caller hands in, under a name that is new each time. The answer can be put into a payload as it is.
async fn upload(
    State(app): State<Arc<App>>,
    query: Result<Query<Upload>, QueryRejection>,
    body: Body,
) -> Result<Json<AssetRef>, HttpError> {
    let Query(Upload { name, tenant_id }) = query?;
    if name.contains('/') || relative(&name).is_none() {
        return Err(HttpError::usage("`name` must be a plain file name"));
    }
    let tenant = tenant_id.as_deref().map(TenantId::parse).transpose();
    tenant.map_err(|error| HttpError::usage(error.to_string()))?;
    let reference = format!("inputs/{}/{name}", Uuid::new_v4());
    store(&app, tenant_id, reference, body, Mode::CreateOnly).await
}

#[derive(Deserialize)]
struct Download {
    tenant_id: Option<String>,
}

/// Callers may read every tenant's files. Who names no tenant means that of the run, if the reference names one.
async fn download(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
    query: Result<Query<Download>, QueryRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let Query(Download { tenant_id }) = query?;
    let run_id = reference.strip_prefix("runs/").and_then(|rest| rest.split('/').next());
    let tenant_id = match (tenant_id, run_id) {
        (None, Some(run_id)) => app.broker().view(run_id).await.and_then(|run| run.tenant_id),
        (named, _) => named,
    };
    let path = app.files.path(&place(tenant_id.as_deref(), &reference))?;
    serve(&path, &app.files.digests, &method, &headers).await
}
