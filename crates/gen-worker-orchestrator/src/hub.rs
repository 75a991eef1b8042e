//! A folder of models over HTTP, for workers whose hub this is: `COZY_HUB_URL=http://<address>/hub`.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, Method},
    response::Response,
};

use crate::{http::App, http_error::HttpError, serve::serve};

pub(crate) async fn model(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let models = app.models.as_ref().ok_or_else(|| HttpError::not_found("model"))?;
    serve(&models.path(&path)?, &models.digests, &method, &headers).await
}
