//! An output stored at an S3-compatible store, with credentials that the payload brings.

mod answer;
mod signer;
mod told;

use std::{future::Future, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use gen_worker_core::{
    ByteLimit, ByteSize, Digest, JobFailure, OutputBody,
    ports::{StoredOutput, Watch},
};
use gen_worker_net::{BodySource, HeaderValue, HttpResponse, NetError, header};
use rusty_s3::Method;
use serde_json::Value;
use tokio::{runtime::Handle, time::timeout};
use tracing::warn;

use self::{
    signer::{Question, Signer},
    told::Told,
};
use crate::{
    content::{self, MeasuredPart},
    error::UploadError,
    multipart::{PART_BYTES, PartPlan},
    source::{Piece, Progress},
    spool::Body,
    target::Place,
    transfer::Transfers,
};

/// Parts of one object on their way at once.
const PARTS_IN_FLIGHT: usize = 4;
/// Longest wait for a store to forget an upload that was given up.
const ABORT_TIMEOUT: Duration = Duration::from_secs(10);

/// One key of one bucket, and the right to write there.
pub(crate) struct S3Target {
    store: Arc<Store>,
    limit: ByteLimit,
    public_url: Option<String>,
    content_type: Option<String>,
}

/// A body, and what is known of it before it is sent.
struct Sending<'a> {
    body: &'a Body,
    size: u64,
    content_type: String,
    progress: Arc<Progress>,
}

/// What a store has taken.
struct Taken {
    sha256: Digest,
    etag: Option<String>,
}

impl S3Target {
    /// Understands `output_upload.s3`.
    pub(crate) fn new(value: Value, transfers: Transfers, limit: ByteLimit) -> Result<Self, UploadError> {
        let mut told = Told::parse(value, transfers.client())?;
        let (public_url, content_type) = (told.public_url.take(), told.content_type.take());
        if content_type.as_deref().is_some_and(|text| HeaderValue::from_str(text).is_err()) {
            let problem = "cannot be sent";
            return Err(UploadError::Target { key: "output_upload.s3.content_type".to_owned(), problem });
        }
        let store = Arc::new(Store { transfers, signer: Signer::new(told) });
        Ok(Self { store, limit, public_url, content_type })
    }

    fn stored(&self, sending: Sending<'_>, taken: Taken) -> StoredOutput {
        let signer = &self.store.signer;
        StoredOutput {
            url: self.public_url.clone().unwrap_or_else(|| signer.url().into()),
            key: Some(signer.key().to_owned()),
            bucket: Some(signer.bucket().to_owned()),
            size_bytes: sending.size,
            sha256: taken.sha256.hex(),
            content_type: sending.content_type,
            etag: taken.etag,
        }
    }
}

#[async_trait]
impl Place for S3Target {
    fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    async fn put(&self, body: &Body, content_type: &str, watch: &Watch) -> Result<StoredOutput, JobFailure> {
        let size = content::size(body, self.limit).await?;
        let content_type = self.content_type().unwrap_or(content_type).to_owned();
        if HeaderValue::from_str(&content_type).is_err() {
            return Err(UploadError::ContentType.into());
        }
        let progress = Progress::of_output(size, watch);
        let sending = Sending { body, size, content_type, progress };
        let taken = match size {
            ..PART_BYTES => watch.unless_canceled(async { Ok(self.store.whole(&sending).await?) }).await?,
            _ => self.store.in_parts(&sending, watch).await?,
        };
        Ok(self.stored(sending, taken))
    }
}

/// Speaks with the store about one object.
struct Store {
    transfers: Transfers,
    signer: Signer,
}

impl Store {
    /// One request. Its checksum is left out only if the store refuses it.
    async fn whole(&self, sending: &Sending<'_>) -> Result<Taken, UploadError> {
        let sha256 = content::measure(sending.body, ByteLimit::Unlimited).await?.sha256;
        let put = |checksum: Option<String>| {
            let mut headers = vec![("content-type", sending.content_type.clone())];
            headers.extend(checksum.map(|checksum| ("x-amz-checksum-sha256", checksum)));
            let piece = Piece::new(sending.body, 0..sending.size, &sending.progress);
            self.send(Question { method: Method::Put, query: Vec::new(), headers }, Some(Arc::new(piece)))
        };
        let answer = match put(Some(sha256.base64())).await {
            Err(error) if checksum_refused(&error) => put(None).await?,
            answer => answer?,
        };
        Ok(Taken { sha256, etag: answer::etag(&answer) })
    }

    /// A request for each part. Whatever ends it early, the store is told to forget the parts.
    async fn in_parts(self: &Arc<Self>, sending: &Sending<'_>, watch: &Watch) -> Result<Taken, JobFailure> {
        let too_large = UploadError::TooLarge { size: sending.size, max: ByteSize(PartPlan::max_size()) };
        let plan = PartPlan::of(sending.size).ok_or(too_large)?;
        let upload = watch.unless_canceled(async { Ok(Upload::begin(self, sending).await?) }).await?;
        let filled = watch.unless_canceled(async { Ok(upload.fill(sending, plan).await?) }).await;
        match filled {
            Ok(_) => upload.keep(),
            Err(_) => upload.abort().await,
        }
        filled
    }

    /// Asks, as often as the settings allow; each try is signed anew and has a connection of its own after the first.
    async fn ask<T, F>(&self, attempt: impl Fn(bool) -> F) -> Result<T, UploadError>
    where
        F: Future<Output = Result<T, UploadError>>,
    {
        let mut fresh = false;
        let client = self.transfers.client();
        client.retry(|| attempt(std::mem::replace(&mut fresh, true)), cause).await
    }

    async fn send(
        &self,
        question: Question,
        body: Option<Arc<dyn BodySource>>,
    ) -> Result<HttpResponse, UploadError> {
        let _place = match &body {
            Some(_) => Some(self.transfers.place().await),
            None => None,
        };
        self.ask(|fresh| self.attempt(&question, body.clone(), fresh)).await
    }

    /// Tries once, or twice when the first signature bore the wrong time.
    async fn attempt(
        &self,
        question: &Question,
        body: Option<Arc<dyn BodySource>>,
        fresh: bool,
    ) -> Result<HttpResponse, UploadError> {
        let mut answer = self.once(question, body.clone(), fresh).await?;
        if answer.status() == 403 && self.signer.set_clock(answer.header(&header::DATE)) {
            answer = self.once(question, body, fresh).await?;
        }
        if answer.status().is_success() { Ok(answer) } else { Err(answer::refusal(answer).await) }
    }

    async fn once(
        &self,
        question: &Question,
        body: Option<Arc<dyn BodySource>>,
        fresh: bool,
    ) -> Result<HttpResponse, UploadError> {
        let mut request = self.signer.request(self.transfers.client(), question);
        if let Some(body) = body {
            request = request.source(body);
        }
        if fresh {
            request = request.fresh_connection();
        }
        request.send().await.map_err(|source| UploadError::S3 { source, code: None })
    }
}

/// What HTTP says of a failure; `None`: it is none of HTTP's.
fn cause(error: &UploadError) -> Option<&NetError> {
    match error {
        UploadError::S3 { source, .. } => Some(source),
        _ => None,
    }
}

/// Whether a store may have answered so because it knows no checksums.
fn checksum_refused(error: &UploadError) -> bool {
    match error {
        UploadError::S3 { source: NetError::Status { status, .. }, code } => {
            let damaged = matches!(code.as_deref(), Some("BadDigest" | "InvalidDigest"));
            matches!(status.as_u16(), 400 | 501) && !damaged
        }
        _ => false,
    }
}

/// A part that the store has.
struct Held {
    number: u64,
    etag: String,
    crc32c: String,
}

/// A multipart upload that was begun. Dropped while it is open, it is aborted in the background.
struct Upload {
    store: Arc<Store>,
    id: String,
    checked: bool,
    open: bool,
}

impl Upload {
    async fn begin(store: &Arc<Store>, sending: &Sending<'_>) -> Result<Self, UploadError> {
        let begin = async |checked: bool| {
            let mut headers = vec![("content-type", sending.content_type.clone())];
            if checked {
                headers.push(("x-amz-checksum-algorithm", "CRC32C".to_owned()));
            }
            let query = vec![("uploads", "1".to_owned())];
            let answer = store.send(Question { method: Method::Post, query, headers }, None).await?;
            let id = answer::element(&answer::text(answer).await?, "UploadId");
            let id = id.ok_or(UploadError::Unconfirmed)?;
            Ok(Self { store: store.clone(), id, checked, open: true })
        };
        match begin(true).await {
            Err(error) if checksum_refused(&error) => begin(false).await,
            begun => begun,
        }
    }

    /// Sends the parts while the body is measured a few parts ahead, and has the store put them together.
    async fn fill(&self, sending: &Sending<'_>, plan: PartPlan) -> Result<Taken, UploadError> {
        let (measured, whole) = content::measure_parts(sending.body, plan);
        let measured = stream::unfold(measured, async |mut parts| Some((parts.recv().await?, parts)));
        let parts = measured.map(|part| self.part(sending, part)).buffer_unordered(PARTS_IN_FLIGHT);
        let mut parts: Vec<Held> = parts.try_collect().await?;
        let sha256 = whole.await.unwrap_or_else(|panic| Err(content::read_failed(panic.into())))?;
        parts.sort_by_key(|part| part.number);
        Ok(Taken { sha256, etag: Some(self.complete(&parts).await?) })
    }

    async fn part(&self, sending: &Sending<'_>, measured: MeasuredPart) -> Result<Held, UploadError> {
        let (number, crc32c) = (measured.part.number, measured.crc32c);
        let headers = match self.checked {
            true => vec![("x-amz-checksum-crc32c", crc32c.clone())],
            false => Vec::new(),
        };
        let query = vec![("partNumber", number.to_string()), ("uploadId", self.id.clone())];
        let piece = Piece::new(sending.body, measured.part.range, &sending.progress);
        let question = Question { method: Method::Put, query, headers };
        let answer = self.store.send(question, Some(Arc::new(piece))).await?;
        let etag = answer::etag(&answer).ok_or(UploadError::Unconfirmed)?;
        Ok(Held { number, etag, crc32c })
    }

    /// The answer may begin as a success and end as a refusal.
    async fn complete(&self, parts: &[Held]) -> Result<String, UploadError> {
        let (store, body) = (&self.store, self.list(parts));
        let query = vec![("uploadId", self.id.clone())];
        let question = &Question { method: Method::Post, query, headers: Vec::new() };
        let attempt = |fresh| {
            let body = Arc::new(OutputBody::Bytes(body.clone().into()));
            async move {
                let text = answer::text(store.attempt(question, Some(body), fresh).await?).await?;
                match text.contains("CompleteMultipartUploadResult") {
                    true => answer::element(&text, "ETag").ok_or(UploadError::Unconfirmed),
                    false => Err(answer::late_refusal(&text)),
                }
            }
        };
        store.ask(attempt).await
    }

    fn list(&self, parts: &[Held]) -> String {
        let mut xml =
            r#"<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">"#.to_owned();
        for Held { number, etag, crc32c } in parts {
            let etag = answer::escaped(etag);
            xml += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>");
            if self.checked {
                xml += &format!("<ChecksumCRC32C>{crc32c}</ChecksumCRC32C>");
            }
            xml += "</Part>";
        }
        xml + "</CompleteMultipartUpload>"
    }

    fn keep(mut self) {
        self.open = false;
    }

    /// Tells the store to forget the parts, and waits for it.
    async fn abort(mut self) {
        abort(self.store.clone(), self.id.clone()).await;
        self.open = false;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.open
            && let Ok(runtime) = Handle::try_current()
        {
            // It ends by itself within its timeout; nobody is left to wait for it.
            runtime.spawn(abort(self.store.clone(), self.id.clone()));
        }
    }
}

async fn abort(store: Arc<Store>, id: String) {
    let question = Question { method: Method::Delete, query: vec![("uploadId", id)], headers: Vec::new() };
    match timeout(ABORT_TIMEOUT, store.send(question, None)).await {
        Ok(Ok(_)) => {}
        // It is gone already.
        Ok(Err(UploadError::S3 { source: NetError::Status { status, .. }, .. })) if status == 404 => {}
        Ok(Err(error)) => warn!(%error, "an unfinished S3 upload could not be aborted"),
        Err(_) => warn!("an unfinished S3 upload could not be aborted in time"),
    }
}

#[cfg(test)]
mod tests;
