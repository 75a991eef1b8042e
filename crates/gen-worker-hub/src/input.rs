//! An input file made present in the run's directory: from the file API or from a public URL.

mod kept;
mod locate;
mod mime;

use std::{fs::File, path::Path};

use bytes::{Bytes, BytesMut};
use gen_worker_core::{Algorithm, AssetRef, Digest, LocalFile, RunScope, TraceContext};
use gen_worker_net::{
    Expected, FileSink, HeaderName, HttpClient, HttpResponse, Method, NetError, StoredFile, header,
};
use tokio::{fs, io::AsyncReadExt};
use tracing::warn;

use crate::{
    blocking::blocking,
    config::HubConfig,
    error::HubError,
    fetch::{SHA256_HEADER, sha256},
    input::{
        kept::Kept,
        locate::{Place, locate},
    },
    meters::Meters,
};

/// How much of a kept file is read at once.
const BLOCK_BYTES: usize = 256 << 10;

static SIZE_HEADER: HeaderName = HeaderName::from_static("x-cozy-size-bytes");
static MIME_HEADER: HeaderName = HeaderName::from_static("x-cozy-mime-type");
static TENANT_HEADER: HeaderName = HeaderName::from_static("x-cozy-tenant-id");

/// Fetches one file into `directory`. One whose digest is wrong is fetched once more.
pub(crate) async fn fetch(
    config: &HubConfig,
    client: &HttpClient,
    meters: &Meters,
    scope: &RunScope,
    asset: &AssetRef,
    directory: &Path,
) -> Result<LocalFile, HubError> {
    let place = locate(config, scope, &asset.reference)?;
    let input = Input {
        shown: &place.shown,
        place: &place,
        max: config.max_input_file.max().unwrap_or(u64::MAX),
        claimed: claimed(asset, &place)?,
        asset,
        directory,
        config,
        trace: scope.trace.as_ref(),
        meters,
    };
    fs::create_dir_all(directory).await?;
    let attempts = || client.retry(|| input.attempt(client), HubError::transport);
    match attempts().await {
        Err(error) if error.is_damage() => {
            warn!(input = input.shown, %error, "fetching anew");
            attempts().await
        }
        fetched => fetched,
    }
}

/// The digest that the payload says.
fn claimed(asset: &AssetRef, place: &Place) -> Result<Option<Digest>, HubError> {
    let Some(digits) = asset.sha256.as_deref().filter(|digits| !digits.is_empty()) else {
        return Ok(None);
    };
    sha256(digits).map(Some).ok_or_else(|| HubError::InputDigest { reference: place.shown.clone() })
}

struct Input<'a> {
    /// The reference, without query.
    shown: &'a str,
    place: &'a Place,
    max: u64,
    claimed: Option<Digest>,
    asset: &'a AssetRef,
    directory: &'a Path,
    config: &'a HubConfig,
    trace: Option<&'a TraceContext>,
    meters: &'a Meters,
}

impl Input<'_> {
    async fn attempt(&self, client: &HttpClient) -> Result<LocalFile, HubError> {
        let mut response = self.ask(client).await?;
        let promised = self.promised(&response)?;
        let kept = promised.digest.and_then(|digest| self.kept(digest));
        if let Some(kept) = &kept
            && let Some(file) = self.take(kept, promised, self.told(&response)).await?
        {
            self.meters.kept_inputs.one();
            return Ok(file);
        }
        let mut sink = self.sink().await?;
        let mut head = Vec::new();
        while let Some(chunk) = self.or_fail(response.chunk().await)? {
            self.admit(sink.written().saturating_add(chunk.len() as u64))?;
            keep_head(&mut head, &chunk);
            self.meters.input_bytes.add(chunk.len() as u64);
            self.or_fail(sink.write(chunk).await)?;
        }
        let mime_type = mime::of(&head, self.told(&response), &self.place.path);
        let target = self.directory.join(self.file_name(mime_type.as_deref()));
        let stored = self.checked(sink.finish(&target, promised).await, self.vouched(&response))?;
        if let Some(kept) = kept {
            let path = stored.path.clone();
            if let Err(error) = blocking(move || Ok(kept.keep(&path)?)).await {
                warn!(%error, "an input file could not be kept");
            }
        }
        Ok(local_file(stored, mime_type))
    }

    /// Where this content is kept; `None`: it is not, for nobody vouches for whose it is.
    fn kept(&self, digest: Digest) -> Option<Kept> {
        let limit = self.config.input_cache_limit.0;
        let tenant = self.place.tenant.as_ref().filter(|_| limit > 0)?;
        let owner =
            [self.place.url.origin().ascii_serialization().as_bytes(), b"\n", tenant.as_bytes()].concat();
        Some(Kept::new(&self.config.input_cache_dir, limit, &owner, digest))
    }

    /// A copy of a kept file, if it is what was promised; one that is not is let go.
    async fn take(
        &self,
        kept: &Kept,
        promised: Expected,
        told: Option<&str>,
    ) -> Result<Option<LocalFile>, HubError> {
        let place = kept.clone();
        let Some(file) = blocking(move || Ok(place.take())).await? else { return Ok(None) };
        match self.copy(file, promised, told).await {
            Err(error) => {
                warn!(%error, "a kept input file is damaged");
                let kept = kept.clone();
                blocking(move || Ok(kept.drop()?)).await?;
                Ok(None)
            }
            copied => copied.map(Some),
        }
    }

    async fn copy(&self, file: File, promised: Expected, told: Option<&str>) -> Result<LocalFile, HubError> {
        let (mut file, mut sink, mut head) = (fs::File::from_std(file), self.sink().await?, Vec::new());
        loop {
            let mut block = BytesMut::with_capacity(BLOCK_BYTES);
            if file.read_buf(&mut block).await? == 0 {
                break;
            }
            let chunk = block.freeze();
            keep_head(&mut head, &chunk);
            self.or_fail(sink.write(chunk).await)?;
        }
        let mime_type = mime::of(&head, told, &self.place.path);
        let target = self.directory.join(self.file_name(mime_type.as_deref()));
        Ok(local_file(self.or_fail(sink.finish(&target, promised).await)?, mime_type))
    }

    /// Its own name is known once its type is.
    async fn sink(&self) -> Result<FileSink, HubError> {
        self.or_fail(FileSink::beside(&self.directory.join("input")).await)
    }

    async fn ask(&self, client: &HttpClient) -> Result<HttpResponse, HubError> {
        let place = self.place;
        let mut request = client.request(Method::GET, place.url.clone(), place.trust);
        if let Some(token) = &place.token {
            request = request.bearer(token);
        }
        if place.is_file_api() {
            request = request.traced(self.trace);
        }
        if let Some(tenant) = &place.tenant {
            request = request.sensitive_header(TENANT_HEADER.clone(), tenant.clone());
        }
        let response = self.or_fail(request.send().await)?;
        let reference = self.shown.to_owned();
        match response.status().as_u16() {
            404 | 410 => Err(HubError::InputNotFound { reference }),
            status @ (401 | 403) if place.is_file_api() => Err(HubError::InputRefused { reference, status }),
            status @ (401 | 403) => Err(HubError::InputDenied { reference, status }),
            _ => self.or_fail(response.into_success()),
        }
    }

    /// What the answer, and the payload, say that the file is.
    fn promised(&self, response: &HttpResponse) -> Result<Expected, HubError> {
        let size = response.header(&SIZE_HEADER).filter(|_| self.place.is_file_api());
        let size_bytes = size.and_then(|digits| digits.trim().parse().ok()).or(response.content_length());
        self.admit(size_bytes.unwrap_or_default())?;
        match (self.claimed, self.vouched(response)) {
            (Some(claimed), Some(stored)) if claimed != stored => Err(self.wrong_digest()),
            (claimed, stored) => Ok(Expected { size_bytes, digest: claimed.or(stored) }),
        }
    }

    /// The digest that the file API says.
    fn vouched(&self, response: &HttpResponse) -> Option<Digest> {
        response.header(&SHA256_HEADER).filter(|_| self.place.is_file_api()).and_then(sha256)
    }

    fn told<'r>(&self, response: &'r HttpResponse) -> Option<&'r str> {
        if self.place.is_file_api() {
            response.header(&MIME_HEADER)
        } else {
            response.header(&header::CONTENT_TYPE)
        }
    }

    fn admit(&self, size_bytes: u64) -> Result<(), HubError> {
        if size_bytes > self.max {
            return Err(HubError::InputTooLarge { reference: self.shown.to_owned(), max: self.max });
        }
        Ok(())
    }

    /// A wrong digest is the caller's fault if nobody but the caller says which is right, and else the transfer's.
    fn checked(
        &self,
        stored: Result<StoredFile, NetError>,
        vouched: Option<Digest>,
    ) -> Result<StoredFile, HubError> {
        match stored {
            Err(NetError::DigestMismatch { .. }) if vouched.is_none() => Err(self.wrong_digest()),
            stored => self.or_fail(stored),
        }
    }

    fn file_name(&self, mime_type: Option<&str>) -> String {
        let key = Digest::of(Algorithm::Sha256, self.asset.reference.as_bytes()).hex();
        let extension = mime::extension(&self.place.path, mime_type);
        format!("{}{extension}", &key[..32])
    }

    fn wrong_digest(&self) -> HubError {
        HubError::InputDigest { reference: self.shown.to_owned() }
    }

    fn or_fail<T>(&self, result: Result<T, NetError>) -> Result<T, HubError> {
        result.map_err(|source| HubError::InputFetch { reference: self.shown.to_owned(), source })
    }
}

fn local_file(stored: StoredFile, mime_type: Option<String>) -> LocalFile {
    LocalFile { path: stored.path, size_bytes: stored.size_bytes, sha256: stored.sha256.hex(), mime_type }
}

fn keep_head(head: &mut Vec<u8>, chunk: &Bytes) {
    let wanted = mime::HEAD_BYTES - head.len();
    head.extend_from_slice(&chunk[..chunk.len().min(wanted)]);
}

#[cfg(test)]
mod tests;
