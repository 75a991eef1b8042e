//! An output stored at an S3-compatible store, with credentials that the payload brings.

mod answer;
mod signer;
mod told;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use gen_worker_core::{
    ByteLimit, ByteSize, Digest, JobFailure,
    ports::{StoredOutput, Watch},
};
use gen_worker_net::{BodySource, HeaderValue, HttpResponse, NetError, header};
use rusty_s3::Method;
use serde_json::Value;

#[cfg(any(test, feature = "fuzzing"))]
pub use self::answer::check as check_answer;
use self::{
    signer::{Question, Signer},
    told::Told,
    upload::Upload,
};
use crate::{
    content::{self, Content},
    error::UploadError,
    multipart::{PART_BYTES, PartPlan},
    source::{Piece, Progress},
    spool::Body,
    target::Place,
    transfer::{Connection, Transfers},
};

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
        let Content { sha256, crc32c, .. } = self.measure(sending.body).await?;
        let put = |checksum: Option<String>| {
            let mut headers = vec![("content-type", sending.content_type.clone())];
            headers.extend(checksum.map(|checksum| ("x-amz-checksum-sha256", checksum)));
            let piece = Piece::new(sending.body, 0..sending.size, &sending.progress).measured(crc32c);
            self.put(Question { method: Method::Put, query: Vec::new(), headers }, piece)
        };
        let answer = match put(Some(sha256.base64())).await {
            Err(error) if checksum_refused(&error) => put(None).await?,
            answer => answer?,
        };
        Ok(Taken { sha256, etag: answer::etag(answer.headers()) })
    }

    async fn measure(&self, body: &Body) -> Result<Content, UploadError> {
        let _place = self.transfers.place().await;
        content::measure(body, ByteLimit::Unlimited).await
    }

    /// A request for each part. Whatever ends it early, the store is told to forget the parts.
    async fn in_parts(self: &Arc<Self>, sending: &Sending<'_>, watch: &Watch) -> Result<Taken, JobFailure> {
        let too_large = UploadError::TooLarge { size: sending.size, max: ByteSize(PartPlan::max_size()) };
        let plan = PartPlan::of(sending.size).ok_or(too_large)?;
        let upload =
            watch.unless_canceled(async { Ok(Upload::begin(self, &sending.content_type).await?) }).await?;
        let filled = watch.unless_canceled(async { Ok(upload.fill(sending, plan).await?) }).await;
        match filled {
            Ok(_) => upload.keep(),
            Err(_) => upload.abort().await,
        }
        filled
    }

    /// Asks, as often as the settings allow; each try is signed anew.
    async fn send(
        &self,
        question: Question,
        body: Option<Arc<dyn BodySource>>,
    ) -> Result<HttpResponse, UploadError> {
        self.transfers.retry(|connection| self.attempt(&question, body.clone(), connection), cause).await
    }

    /// The same, which believes the store only if all was sent.
    async fn put(&self, question: Question, piece: Piece) -> Result<HttpResponse, UploadError> {
        let piece = Arc::new(piece);
        let answer = self.send(question, Some(piece.clone())).await?;
        piece.confirm().map(|()| answer)
    }

    /// Tries once, or twice when the first signature bore the wrong time.
    async fn attempt(
        &self,
        question: &Question,
        body: Option<Arc<dyn BodySource>>,
        connection: Connection,
    ) -> Result<HttpResponse, UploadError> {
        let mut answer = self.once(question, body.clone(), connection).await?;
        if answer.status() == 403 && self.signer.set_clock(answer.header(&header::DATE)) {
            answer = self.once(question, body, connection).await?;
        }
        if answer.status().is_success() { Ok(answer) } else { Err(answer::refusal(answer).await) }
    }

    async fn once(
        &self,
        question: &Question,
        body: Option<Arc<dyn BodySource>>,
        connection: Connection,
    ) -> Result<HttpResponse, UploadError> {
        let mut request = self.signer.request(self.transfers.client(), question);
        if let Some(body) = body {
            request = request.source(body);
        }
        connection.carry(request).send().await.map_err(|source| UploadError::S3 { source, code: None })
    }
}

/// What HTTP says of a failure; `None`: it is none of HTTP's.
fn cause(error: &UploadError) -> Option<&NetError> {
    match error {
        UploadError::S3 { source, .. } => Some(source),
        _ => None,
    }
}

/// Whether a store may have answered so because it knows no checksums: what it says of bytes that it checked is no reason to
/// send them unchecked.
fn checksum_refused(error: &UploadError) -> bool {
    match error {
        UploadError::S3 { source: NetError::Status { status, .. }, code } => {
            matches!(status.as_u16(), 400 | 501) && code.as_deref() != Some("InvalidDigest")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
