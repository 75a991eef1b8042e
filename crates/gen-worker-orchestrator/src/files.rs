//! The file API: what runs save and what callers hand in. Each tenant has a folder of its own, and a token or a caller
//! names the tenant before a reference is looked at: there is no reference to another tenant's file.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, Method},
    response::Response,
};
use gen_worker_core::{Algorithm, AssetRef, Digest, TenantId};
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    auth::Caller,
    http::{App, token_of},
    http_error::HttpError,
    queue::FileScope,
    serve::{mime_of, serve},
    store::{Mode, relative},
};

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
    app.broker().file_scope(token).await?.ok_or_else(HttpError::credential)
}

/// For runs, with the token that each is given, as are the two below.
pub(crate) async fn read(
    State(app): State<Arc<App>>,
    Path(reference): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let scope = scope(&app, &headers).await?;
    let path = app.files.path(&place(scope.tenant_id.as_deref(), &reference))?;
    serve(&path, &app.files.digests, &method, &headers).await
}

pub(crate) async fn replace(
    app: State<Arc<App>>,
    reference: Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<AssetRef>, HttpError> {
    save(app, reference, headers, body, Mode::Replace).await
}

pub(crate) async fn create(
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
pub(crate) struct Upload {
    name: String,
    tenant_id: Option<String>,
}

/// Stores what a caller hands in, under a name that is new each time. The answer can be put into a payload as it is.
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<Upload>, QueryRejection>,
    body: Body,
) -> Result<Json<AssetRef>, HttpError> {
    let Query(Upload { name, tenant_id }) = query?;
    if name.contains('/') || relative(&name).is_none() {
        return Err(HttpError::usage("`name` must be a plain file name"));
    }
    let tenant = tenant_id.as_deref().map(TenantId::parse).transpose();
    tenant.map_err(|error| HttpError::usage(error.to_string()))?;
    let tenant_id = caller.acts_for(tenant_id).ok_or_else(HttpError::other_tenant)?;
    let reference = format!("inputs/{}/{name}", Uuid::new_v4());
    store(&app, tenant_id, reference, body, Mode::CreateOnly).await
}

#[derive(Deserialize)]
pub(crate) struct Download {
    tenant_id: Option<String>,
}

/// The operator may read every tenant's files. Who names no tenant means that of the run, if the reference names one.
pub(crate) async fn download(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(reference): Path<String>,
    query: Result<Query<Download>, QueryRejection>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let Query(Download { tenant_id }) = query?;
    let run_id = reference.strip_prefix("runs/").and_then(|rest| rest.split('/').next());
    let tenant_id = match (&caller, tenant_id, run_id) {
        (Caller::Operator, None, Some(run_id)) => {
            app.broker().view(run_id).await?.and_then(|run| run.tenant_id)
        }
        (Caller::Operator, tenant_id, _) => tenant_id,
        (Caller::Tenant(_), tenant_id, _) => {
            caller.acts_for(tenant_id).ok_or_else(HttpError::other_tenant)?
        }
    };
    let path = app.files.path(&place(tenant_id.as_deref(), &reference))?;
    serve(&path, &app.files.digests, &method, &headers).await
}
