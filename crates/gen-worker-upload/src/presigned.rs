//! An output stored by one `PUT` that somebody else has signed.

use async_trait::async_trait;
use gen_worker_core::{
    ByteLimit, JobFailure, Secret,
    ports::{StoredOutput, Watch},
};
use gen_worker_net::{HeaderValue, HttpRequest, Method, NetError, Trust, header};
use url::Position;

use crate::{
    error::UploadError,
    fields::Fields,
    signed_url::{self, SignedUrl},
    source::Outgoing,
    spool::Body,
    target::Place,
    transfer::{Connection, Transfers},
};

/// How often one output's address is renewed: with each, the one before has run out while the output was sent.
const MAX_RENEWALS: usize = 3;
/// Largest answer of a `refresh_url`; it holds a URL and a few headers.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// One address to put one output to.
pub(crate) struct Presigned {
    pub(crate) transfers: Transfers,
    pub(crate) limit: ByteLimit,
    pub(crate) to: SignedUrl,
    /// Who signs another address once this one has run out; `None`: nobody.
    pub(crate) refresh_url: Option<Secret<String>>,
    pub(crate) public_url: Option<String>,
}

impl Presigned {
    async fn send(
        &self,
        body: &Body,
        content_type: &str,
        watch: &Watch,
    ) -> Result<StoredOutput, UploadError> {
        let outgoing = Outgoing::new(body, self.limit, watch).await?;
        let mut renewed = None;
        for _ in 0..MAX_RENEWALS {
            let to = renewed.as_ref().unwrap_or(&self.to);
            match (self.send_to(to, content_type, &outgoing).await, &self.refresh_url) {
                (Err(UploadError::Upload { source: NetError::Status { status, .. } }), Some(refresh_url))
                    if status == 403 =>
                {
                    renewed = Some(self.renew(refresh_url).await?);
                }
                (ended, _) => return ended,
            }
        }
        self.send_to(renewed.as_ref().unwrap_or(&self.to), content_type, &outgoing).await
    }

    async fn send_to(
        &self,
        to: &SignedUrl,
        content_type: &str,
        outgoing: &Outgoing,
    ) -> Result<StoredOutput, UploadError> {
        let content_type = signed_type(to, content_type)?;
        let whole = outgoing.whole();
        let attempt = |connection: Connection| {
            let request = connection.carry(self.request(to, &content_type).source(whole.clone()));
            outgoing.beside_its_digest(async { request.send().await?.into_success() })
        };
        let answer = self.transfers.retry(attempt, |error| Some(error)).await.map_err(failed)?;
        whole.confirm()?;
        Ok(StoredOutput {
            url: self.public_url.clone().unwrap_or_else(|| to.url()[..Position::AfterPath].to_owned()),
            key: None,
            bucket: None,
            size_bytes: outgoing.size,
            sha256: outgoing.digest()?.hex(),
            content_type: content_type.to_str().expect("it was made of text").to_owned(),
            etag: answer.header(&header::ETAG).map(str::to_owned),
        })
    }

    fn request(&self, to: &SignedUrl, content_type: &HeaderValue) -> HttpRequest {
        let request = self.transfers.client().request(Method::PUT, to.url(), Trust::Payload);
        let request = request.header(header::CONTENT_TYPE, content_type.clone());
        let signed = to.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
        signed.fold(request, |request, (name, value)| request.header(name, value))
    }

    /// Asks for another address: a `POST` without a body, answered with `{"put_url", "headers"?}`.
    async fn renew(&self, refresh_url: &Secret<String>) -> Result<SignedUrl, UploadError> {
        let client = self.transfers.client();
        let ask = async || {
            let request = client.request(Method::POST, signed_url::parsed(refresh_url), Trust::Payload);
            let answer = request.fresh_connection().send().await?.into_success()?;
            answer.bytes(MAX_ANSWER_BYTES).await
        };
        let answer = client.retry(ask, |error| Some(error)).await.map_err(failed)?;
        let place = "output_upload.refresh_url: answer";
        let mut fields = Fields::parse(place, &String::from_utf8_lossy(&answer), &["put_url", "headers"])?;
        SignedUrl::parse(&mut fields, client)
    }
}

/// A signed content type is part of the signature, so it wins over what the function says.
fn signed_type(to: &SignedUrl, content_type: &str) -> Result<HeaderValue, UploadError> {
    match to.headers.get(header::CONTENT_TYPE) {
        Some(signed) => Ok(signed.clone()),
        None => HeaderValue::from_str(content_type).map_err(|_| UploadError::ContentType),
    }
}

fn failed(source: NetError) -> UploadError {
    UploadError::Upload { source }
}

#[async_trait]
impl Place for Presigned {
    fn content_type(&self) -> Option<&str> {
        self.to.headers.get(header::CONTENT_TYPE)?.to_str().ok()
    }

    async fn put(&self, body: &Body, content_type: &str, watch: &Watch) -> Result<StoredOutput, JobFailure> {
        watch.unless_canceled(async { Ok(self.send(body, content_type, watch).await?) }).await
    }
}

#[cfg(test)]
mod tests;
