//! An output stored by one `PUT` that somebody else has signed.

use std::sync::Arc;

use async_trait::async_trait;
use gen_worker_core::{
    ByteLimit, Digest, JobFailure, RawOutput, Secret,
    ports::{OutputTarget, StoredOutput, Watch},
};
use gen_worker_net::{HeaderMap, HeaderValue, HttpRequest, Method, Trust, header};
use url::{Position, Url};

use crate::{
    error::UploadError,
    source::{Outgoing, Piece},
    transfer::Transfers,
};

/// One address to put one output to, with the headers that its signature covers.
pub(crate) struct Presigned {
    pub(crate) transfers: Transfers,
    pub(crate) limit: ByteLimit,
    pub(crate) put_url: Secret<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) public_url: Option<String>,
}

impl Presigned {
    async fn put(&self, output: &RawOutput, watch: &Watch) -> Result<StoredOutput, UploadError> {
        let content_type = self.content_type(output)?;
        let _place = self.transfers.place().await;
        let outgoing = Outgoing::new(&output.body, self.limit, watch).await?;
        let answer = self
            .request(outgoing.whole(), &content_type)
            .send_retrying()
            .await
            .and_then(|answer| answer.into_success())
            .map_err(|source| UploadError::Upload { source })?;
        let etag = answer.header(&header::ETAG).map(str::to_owned);
        Ok(self.stored(outgoing.size, outgoing.digest()?, &content_type, etag))
    }

    /// A signed content type is part of the signature, so it wins over what the function says.
    fn content_type(&self, output: &RawOutput) -> Result<HeaderValue, UploadError> {
        match self.headers.get(header::CONTENT_TYPE) {
            Some(signed) => Ok(signed.clone()),
            None => HeaderValue::from_str(&output.content_type).map_err(|_| UploadError::ContentType),
        }
    }

    fn request(&self, body: Arc<Piece>, content_type: &HeaderValue) -> HttpRequest {
        let client = self.transfers.client();
        let request = client
            .request(Method::PUT, self.url(), Trust::Payload)
            .source(body)
            .header(header::CONTENT_TYPE, content_type.clone());
        self.headers
            .iter()
            .fold(request, |request, (name, value)| request.header(name.clone(), value.clone()))
    }

    fn stored(
        &self,
        size_bytes: u64,
        sha256: Digest,
        content_type: &HeaderValue,
        etag: Option<String>,
    ) -> StoredOutput {
        let unsigned = || self.url()[..Position::AfterPath].to_owned();
        StoredOutput {
            url: self.public_url.clone().unwrap_or_else(unsigned),
            key: None,
            bucket: None,
            size_bytes,
            sha256: sha256.hex(),
            content_type: content_type.to_str().expect("it was made of text").to_owned(),
            etag,
        }
    }

    fn url(&self) -> Url {
        self.put_url.expose().parse().expect("it was written by a URL")
    }
}

#[async_trait]
impl OutputTarget for Presigned {
    async fn store(&self, output: &RawOutput, watch: &Watch) -> Result<StoredOutput, JobFailure> {
        watch.unless_canceled(async { Ok(self.put(output, watch).await?) }).await
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::{ByteSize, FailureKind, ports::OutputStore};
    use gen_worker_net::HttpClient;

    use super::*;
    use crate::{
        config::UploadConfig,
        target::OutputTargets,
        testing::{Store, answer, bytes, client, client_allowing, config, watch},
    };

    fn targets(client: HttpClient) -> OutputTargets {
        let config = UploadConfig { max_upload: ByteLimit::Max(ByteSize::mib(4)), ..config() };
        OutputTargets::new(&config, Transfers::new(&config, client))
    }

    /// Stores `output` at the path of a presigned URL, with these further fields of `output_upload`.
    async fn store(store: &Store, fields: &str, output: RawOutput) -> Result<StoredOutput, JobFailure> {
        let url = format!("{}/bucket/key?X-Amz-Signature=secret-query", store.url);
        let target =
            targets(client()).target(format!(r#"{{"put_url": "{url}"{fields}}}"#).as_str().into())?;
        target.store(&output, &watch().0).await
    }

    fn png() -> RawOutput {
        RawOutput::bytes("data", "image/png")
    }

    #[tokio::test]
    async fn an_output_is_put_as_it_was_signed() {
        let there = Store::answering([]).await;
        let fields = r#", "headers": {"x-amz-meta-a": "1", "Content-Type": "image/x-signed"}"#;
        let stored = store(&there, fields, png()).await.unwrap();

        let heard = there.heard().pop().unwrap();
        assert_eq!((heard.method.as_str(), &heard.body[..]), ("PUT", &b"data"[..]));
        assert_eq!(heard.uri, "/bucket/key?X-Amz-Signature=secret-query");
        assert_eq!(heard.header("x-amz-meta-a"), "1");
        assert_eq!(heard.header("content-type"), "image/x-signed");
        assert_eq!(heard.header("content-length"), "4");
        for absent in ["authorization", "transfer-encoding", "x-cozy-tenant-id", "x-cozy-sha256"] {
            assert!(!heard.headers.contains_key(absent), "{absent}");
        }
        assert_eq!(stored.url, format!("{}/bucket/key", there.url));
        assert_eq!((stored.size_bytes, stored.content_type.as_str()), (4, "image/x-signed"));
        assert_eq!(
            stored.sha256,
            gen_worker_core::Digest::of(gen_worker_core::Algorithm::Sha256, b"data").hex()
        );
    }

    #[tokio::test]
    async fn the_public_url_and_the_stores_version_are_passed_on() {
        let mut created = answer(201, "");
        created.headers_mut().insert("etag", r#""abc""#.parse().unwrap());
        let there = Store::answering([created]).await;
        let stored = store(&there, r#", "public_url": "https://cdn.example/key""#, png()).await.unwrap();
        assert_eq!(stored.url, "https://cdn.example/key");
        assert_eq!((stored.etag.as_deref(), stored.content_type.as_str()), (Some(r#""abc""#), "image/png"));
    }

    #[tokio::test]
    async fn a_file_is_streamed_and_sent_whole_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out");
        let data = bytes(3 << 20);
        std::fs::write(&path, &data).unwrap();
        let there = Store::answering([answer(503, ""), answer(408, "")]).await;
        let stored = store(&there, "", RawOutput::file(path, "video/mp4")).await.unwrap();
        assert_eq!(stored.size_bytes, data.len() as u64);
        let heard = there.heard();
        assert!(heard.len() == 3 && heard.iter().all(|heard| heard.body == data));
    }

    #[tokio::test]
    async fn a_missing_output_fails_the_run() {
        for (status, kind, tries) in [
            (500, FailureKind::Retryable, 3),
            (429, FailureKind::Retryable, 3),
            (403, FailureKind::Auth, 1),
            (400, FailureKind::Validation, 1),
            (307, FailureKind::Validation, 1),
        ] {
            let mut answers = Vec::new();
            answers.resize_with(tries, || {
                let mut answer = answer(status, "secret-query");
                answer.headers_mut().insert("location", "/elsewhere".parse().unwrap());
                answer
            });
            let there = Store::answering(answers).await;
            let failure =
                store(&there, r#", "headers": {"x-key": "secret-header"}"#, png()).await.unwrap_err();
            assert_eq!((failure.kind, there.heard().len()), (kind, tries), "{status}");
            let shown = format!("{failure:?} {} {}", failure.error_message(), failure.chain());
            assert!(!shown.contains("secret-") && !shown.contains("127.0.0.1"), "{shown}");
        }
    }

    #[tokio::test]
    async fn a_name_is_judged_by_the_address_it_leads_to() {
        let there = Store::answering([]).await;
        let url = there.url.replace("127.0.0.1", "localhost");
        let target =
            targets(client_allowing(&[])).target(format!(r#"{{"put_url": "{url}"}}"#).as_str().into());
        let failure = target.unwrap().store(&png(), &watch().0).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Validation);
        assert!(there.heard().is_empty());
    }

    #[tokio::test]
    async fn nothing_is_sent_of_what_is_refused_here() {
        let there = Store::answering([]).await;
        let large = store(&there, "", RawOutput::bytes(bytes((4 << 20) + 1), "image/png")).await;
        assert_eq!(large.unwrap_err().kind, FailureKind::Validation);
        let untyped = store(&there, "", RawOutput::bytes("data", "image/png\r\nx-evil: 1")).await;
        assert_eq!(untyped.unwrap_err().kind, FailureKind::Internal);
        let unreadable = store(&there, "", RawOutput::file("/nowhere", "image/png")).await;
        assert_eq!(unreadable.unwrap_err().kind, FailureKind::Internal);
        assert!(there.heard().is_empty());
    }
}
