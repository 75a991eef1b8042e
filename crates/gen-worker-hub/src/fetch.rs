//! Carries a download out: resumed where it broke off, checked before it counts.

use std::{io, path::PathBuf};

use gen_worker_core::{Algorithm, Digest, ModelRef};
use gen_worker_net::{
    Expected, FileSink, HeaderName, HeaderValue, HttpClient, HttpResponse, Method, NetError, StatusCode,
    StoredFile, header,
};
use tokio::fs;
use tracing::warn;

use crate::{error::HubError, progress::Reporter, source::direct::Remote};

/// The digest that the hub promises, 64 hexadecimal digits.
pub(crate) static SHA256_HEADER: HeaderName = HeaderName::from_static("x-cozy-sha256");
/// The file in the work directory that holds the partial file's `ETag`.
const VALIDATOR: &str = ".etag";

/// One file to bring into a work directory.
pub(crate) struct Fetch<'a> {
    pub(crate) client: &'a HttpClient,
    pub(crate) model: &'a ModelRef,
    pub(crate) remote: &'a Remote,
    pub(crate) work: PathBuf,
}

impl Fetch<'_> {
    /// Brings the file. What proves damaged is thrown away and fetched once more.
    pub(crate) async fn run(&self, reporter: &Reporter) -> Result<StoredFile, HubError> {
        fs::create_dir_all(&self.work).await?;
        let fetched = match self.tries(reporter).await {
            Err(error) if error.is_damage() => {
                warn!(model = %self.model, %error, "fetching anew");
                self.forget().await?;
                self.tries(reporter).await
            }
            fetched => fetched,
        };
        if fetched.as_ref().is_err_and(HubError::is_damage) {
            self.forget().await?;
        }
        fetched
    }

    async fn tries(&self, reporter: &Reporter) -> Result<StoredFile, HubError> {
        self.client.retry(|| self.attempt(reporter), HubError::transport).await
    }

    async fn attempt(&self, reporter: &Reporter) -> Result<StoredFile, HubError> {
        let algorithm = self.remote.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let mut sink = self.or_fail(FileSink::resume(self.partial(), algorithm).await)?;
        let validator = self.validator().await?;
        if validator.is_none() && self.remote.digest.is_none() {
            // Nothing would show that the rest belongs to another version.
            self.or_fail(sink.restart().await)?;
        }
        let response = self.ask(sink.written(), validator).await?;
        self.receive(sink, response, reporter).await
    }

    /// Asks for the file from this byte on.
    async fn ask(&self, from: u64, validator: Option<HeaderValue>) -> Result<HttpResponse, HubError> {
        let remote = self.remote;
        let mut request = self.client.request(Method::GET, remote.url.clone(), remote.trust);
        if let Some(token) = &remote.token {
            request = request.bearer(token);
        }
        if from > 0 {
            let range = HeaderValue::try_from(format!("bytes={from}-")).expect("digits fit a header");
            request = request.header(header::RANGE, range);
            if let Some(validator) = validator {
                request = request.header(header::IF_RANGE, validator);
            }
        }
        let response = self.or_fail(request.send().await)?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                Err(HubError::NotFound { model: self.model.to_string() })
            }
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(HubError::Refused { model: self.model.to_string(), status: status.as_u16() })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Err(self.wrong_range()),
            _ => self.or_fail(response.into_success()),
        }
    }

    async fn receive(
        &self,
        mut sink: FileSink,
        mut response: HttpResponse,
        reporter: &Reporter,
    ) -> Result<StoredFile, HubError> {
        let size_bytes = self.begin(&mut sink, &response).await?;
        let promised = response.header(&SHA256_HEADER).and_then(sha256);
        reporter.bytes(sink.written(), size_bytes);
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => self.or_fail(sink.write(chunk).await)?,
                Ok(None) => break,
                Err(error) => {
                    self.or_fail(sink.flush().await)?;
                    return self.or_fail(Err(error));
                }
            }
            reporter.bytes(sink.written(), size_bytes);
        }
        let expected = Expected { size_bytes, digest: self.remote.digest.or(promised) };
        let target = self.work.join(&self.remote.file_name);
        let stored = self.or_fail(sink.finish(&target, expected).await)?;
        self.forget_validator().await?;
        Ok(stored)
    }

    /// Brings the sink to where the answer begins. Returns the size of the whole file, if the answer says it.
    async fn begin(&self, sink: &mut FileSink, response: &HttpResponse) -> Result<Option<u64>, HubError> {
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.header(&header::CONTENT_RANGE).and_then(content_range);
            return match range {
                Some((from, total)) if from == sink.written() => Ok(total),
                Some(_) | None => Err(self.wrong_range()),
            };
        }
        self.or_fail(sink.restart().await)?;
        match response.headers().get(header::ETAG).filter(|etag| is_strong(etag)) {
            Some(etag) => fs::write(self.work.join(VALIDATOR), etag.as_bytes()).await?,
            None => self.forget_validator().await?,
        }
        Ok(response.content_length())
    }

    async fn validator(&self) -> io::Result<Option<HeaderValue>> {
        match fs::read(self.work.join(VALIDATOR)).await {
            Ok(etag) => Ok(HeaderValue::from_bytes(&etag).ok().filter(is_strong)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn forget_validator(&self) -> io::Result<()> {
        remove(self.work.join(VALIDATOR)).await
    }

    async fn forget(&self) -> io::Result<()> {
        self.forget_validator().await?;
        remove(self.partial()).await
    }

    fn partial(&self) -> PathBuf {
        self.work.join(".part")
    }

    fn or_fail<T>(&self, result: Result<T, NetError>) -> Result<T, HubError> {
        result.map_err(|source| HubError::Fetch { model: self.model.to_string(), source })
    }

    fn wrong_range(&self) -> HubError {
        HubError::Range { model: self.model.to_string() }
    }
}

/// The digest in a header; `None`: it is none.
pub(crate) fn sha256(digits: &str) -> Option<Digest> {
    Digest::from_hex(Algorithm::Sha256, digits.trim()).ok()
}

/// First byte and whole size of `bytes 5-9/10`; the size may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    Some((from.parse().ok()?, total.parse().ok()))
}

/// `If-Range` takes no weak validator.
fn is_strong(etag: &HeaderValue) -> bool {
    etag.as_bytes().starts_with(b"\"")
}

async fn remove(path: PathBuf) -> io::Result<()> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood_or_refused() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes */10", "items 5-9/10", "bytes x-9/10"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
