//! Files that a run saves, stored at the file API (contract §7.4).

use std::sync::Arc;

use async_trait::async_trait;
use gen_worker_core::{
    Algorithm, Asset, AssetRef, Digest, JobFailure, RunScope, Secret, TenantId, TraceContext,
    ports::{FileStore, SaveMode, SaveRequest, Watch},
};
use gen_worker_net::{
    HeaderName, HeaderValue, HttpClient, HttpRequest, HttpResponse, Method, NetError, Trust, header,
};
use serde::Deserialize;
use url::Url;

use crate::{
    config::UploadConfig,
    content::{self, Content},
    error::UploadError,
    meters::To,
    mime::media_type,
    output_ref::OutputRef,
    source::{Piece, Progress},
    spool::{Body, Spooled},
    transfer::{Connection, Transfers},
};

const TENANT: HeaderName = HeaderName::from_static("x-cozy-tenant-id");
const SHA256: HeaderName = HeaderName::from_static("x-cozy-sha256");

/// Largest answer that is read; it holds three short fields.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// The file API, as all runs of a worker see it.
#[derive(Debug, Clone)]
pub struct FileApi {
    config: UploadConfig,
    transfers: Transfers,
}

/// One file, ready to be sent as often as it takes.
struct Upload<'a> {
    url: Url,
    token: Option<&'a Secret<String>>,
    tenant: Option<&'a TenantId>,
    media_type: &'static str,
    content: &'a Content,
    request: &'a SaveRequest,
    body: Arc<Piece>,
    trace: Option<&'a TraceContext>,
}

/// What the file API may say about what it stored.
#[derive(Default, Deserialize)]
struct Saved {
    mime_type: Option<String>,
    sha256: Option<String>,
}

impl FileApi {
    /// The file API by these settings.
    pub fn new(config: UploadConfig, transfers: Transfers) -> Self {
        Self { config, transfers }
    }

    async fn store(
        &self,
        scope: &RunScope,
        request: &SaveRequest,
        body: &Body,
        watch: &Watch,
    ) -> Result<Asset, UploadError> {
        let reference = OutputRef::parse(&scope.run_id, &request.reference)?;
        let (base, token) = self.endpoint(scope)?;
        let content = self.measure(body).await?;
        let progress = Progress::of_file(&scope.run_id, reference.as_str(), content.size, watch);
        let upload = Upload {
            url: file_url(base, &reference),
            token,
            tenant: scope.tenant_id.as_ref().or(self.config.tenant_id.as_ref()),
            media_type: media_type(&content.head, reference.as_str()),
            content: &content,
            request,
            body: Arc::new(Piece::new(body, 0..content.size, &progress).measured(content.crc32c)),
            trace: scope.trace.as_ref(),
        };
        let answer = upload.send(&self.transfers).await?;
        upload.body.confirm()?;
        // The file is stored whatever the answer's body looks like, which the contract leaves open.
        let saved = answer.json::<Saved>(MAX_ANSWER_BYTES).await.unwrap_or_default();
        upload.asset(saved)
    }

    /// Reading takes a place as sending does: it has a buffer too.
    async fn measure(&self, body: &Body) -> Result<Content, UploadError> {
        let _place = self.transfers.place().await;
        content::measure(body, self.config.max_output_file).await
    }

    /// Where this run's files go and with which credential: the run's place never sees the worker's credential.
    fn endpoint<'a>(
        &'a self,
        scope: &'a RunScope,
    ) -> Result<(&'a Url, Option<&'a Secret<String>>), UploadError> {
        let own = scope.file_token.as_ref();
        match (&scope.file_base_url, &self.config.file_api_url) {
            (Some(base), _) => Ok((base, own)),
            (None, Some(base)) => Ok((base, own.or(self.config.file_api_token.as_ref()))),
            (None, None) => Err(UploadError::NoFileApi),
        }
    }
}

#[async_trait]
impl FileStore for FileApi {
    fn has_place(&self, scope: &RunScope) -> bool {
        self.endpoint(scope).is_ok()
    }

    async fn save(&self, scope: &RunScope, request: SaveRequest, watch: &Watch) -> Result<Asset, JobFailure> {
        let save = async {
            // What is refused is refused before a stream is read.
            OutputRef::parse(&scope.run_id, &request.reference)?;
            self.endpoint(scope)?;
            let limit = self.config.max_output_file;
            let spooled = Spooled::of(&request.body, limit, &self.config.spool_dir).await?;
            Ok(self.store(scope, &request, &spooled.body, watch).await?)
        };
        let save = watch.unless_canceled(save);
        let size = |asset: &Asset| asset.size_bytes().unwrap_or(0);
        self.transfers.meters().count(To::Files, save, size).await
    }
}

impl Upload<'_> {
    async fn send(&self, transfers: &Transfers) -> Result<HttpResponse, UploadError> {
        let mode = self.request.mode;
        let attempt = |connection: Connection| async move {
            let request = connection.carry(self.http(transfers.client()));
            accepted(request.send().await.map_err(refused)?, mode)
        };
        transfers.retry(attempt, |error| cause(error, mode)).await
    }

    fn http(&self, client: &HttpClient) -> HttpRequest {
        let method = match self.request.mode {
            SaveMode::Overwrite => Method::PUT,
            SaveMode::CreateOnly => Method::POST,
        };
        let digest = HeaderValue::try_from(self.content.sha256.hex()).expect("digits are a header value");
        let mut http = client
            .request(method, self.url.clone(), Trust::Operator)
            .header(header::CONTENT_TYPE, HeaderValue::from_static(self.media_type))
            .header(SHA256, digest)
            .source(self.body.clone())
            .traced(self.trace);
        if let Some(tenant) = self.tenant {
            let tenant = HeaderValue::from_bytes(tenant.as_str().as_bytes());
            http = http.header(TENANT, tenant.expect("an id holds no control character"));
        }
        match self.token {
            Some(token) => http.bearer(token),
            None => http,
        }
    }

    fn asset(&self, saved: Saved) -> Result<Asset, UploadError> {
        let sent = self.content.sha256;
        if let Some(stored) = saved.sha256.filter(|stored| !stored.is_empty())
            && Digest::from_hex(Algorithm::Sha256, &stored) != Ok(sent)
        {
            return Err(UploadError::DigestMismatch { sent });
        }
        let said = saved.mime_type.filter(|mime_type| !mime_type.is_empty());
        Ok(Asset::new(AssetRef {
            reference: self.request.reference.clone(),
            tenant_id: self.tenant.map(ToString::to_string),
            mime_type: said.or_else(|| Some(self.media_type.to_owned())),
            size_bytes: Some(self.content.size),
            sha256: Some(sent.hex()),
        }))
    }
}

fn file_url(base: &Url, reference: &OutputRef) -> Url {
    let mut url = base.clone();
    let root = base.path().trim_end_matches('/');
    url.set_path(&format!("{root}/api/v1/file/{}", reference.to_url_path()));
    url.set_query(None);
    url.set_fragment(None);
    url
}

fn accepted(answer: HttpResponse, mode: SaveMode) -> Result<HttpResponse, UploadError> {
    if mode == SaveMode::CreateOnly && answer.status().as_u16() == 409 {
        return Err(UploadError::Exists);
    }
    answer.into_success().map_err(refused)
}

/// Why another try may help; `None`: it may not.
fn cause(error: &UploadError, mode: SaveMode) -> Option<&NetError> {
    match (error, mode) {
        (UploadError::Save { source }, SaveMode::Overwrite) => Some(source),
        (UploadError::Save { source }, SaveMode::CreateOnly) => unsent(source),
        _ => None,
    }
}

/// A file is created in a second try only if nothing was sent in the first: else it would find what that one created.
fn unsent(error: &NetError) -> Option<&NetError> {
    matches!(error, NetError::Connect { .. }).then_some(error)
}

fn refused(source: NetError) -> UploadError {
    match source {
        NetError::Status { status, .. } if matches!(status.as_u16(), 401 | 403) => {
            UploadError::Unauthorized { status }
        }
        source => UploadError::Save { source },
    }
}

#[cfg(test)]
mod tests;
