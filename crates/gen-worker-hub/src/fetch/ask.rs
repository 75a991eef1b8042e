//! Asks for a piece: where redirects led before, with the credential of the place it belongs to.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use gen_worker_net::{HeaderValue, HttpResponse, Method, header};
use url::Url;

use super::{
    Fetch,
    answer::{self, Answer},
};
use crate::{error::HubError, part::Part};

/// Where a file's address led: asking there again spares the redirect, until the permission in it has expired.
#[derive(Debug, Default)]
pub(crate) struct Address(Mutex<Option<Url>>);

impl Address {
    fn get(&self) -> Option<Url> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, url: Option<Url>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = url;
    }
}

impl Fetch {
    /// The first answer for a file, by which it is known how the rest comes.
    pub(super) async fn first(&self, part: &Arc<Part>, piece: &Range<u64>) -> Result<Answer, HubError> {
        let response = self.ask(Some(piece), part.validator()).await?;
        let answer = self.judge(response, piece)?;
        if let Answer::Piece(response) = &answer
            && part.present() > 0
            && part.etag().is_some()
            && answer::etag(response) != part.etag()
        {
            return Err(self.wrong_range());
        }
        Ok(answer)
    }

    /// A further piece. Whatever is no piece belongs to another version, also with servers that heed no `If-Range`.
    pub(super) async fn next(&self, part: &Arc<Part>, piece: &Range<u64>) -> Result<HttpResponse, HubError> {
        let response = self.ask(Some(piece), part.validator()).await?;
        match self.judge(response, piece)? {
            Answer::Piece(response) if !answer::is_of_another(&response, part) => Ok(response),
            Answer::Piece(_) | Answer::Whole(_) | Answer::Nothing => Err(self.wrong_range()),
        }
    }

    /// The whole file.
    pub(super) async fn all(&self) -> Result<HttpResponse, HubError> {
        let response = self.ask(None, None).await?;
        self.file_of(response)
    }

    async fn ask(
        &self,
        piece: Option<&Range<u64>>,
        validator: Option<HeaderValue>,
    ) -> Result<HttpResponse, HubError> {
        if let Some(led) = self.address.get() {
            let response = self.send(led, piece, validator.clone()).await?;
            if !matches!(response.status().as_u16(), 400 | 401 | 403 | 404 | 410) {
                return Ok(response);
            }
            self.address.set(None);
        }
        let response = self.send(self.file.url.clone(), piece, validator).await?;
        let model = || self.model.to_string();
        match response.status().as_u16() {
            404 | 410 => Err(HubError::NotFound { model: model() }),
            // 400: what the address was signed with has expired, say the stores.
            status @ (400 | 401 | 403) if self.file.signed => {
                Err(HubError::Expired { model: model(), status })
            }
            status @ (401 | 403) => Err(HubError::Refused { model: model(), status }),
            _ => {
                let led = Some(response.url()).filter(|url| **url != self.file.url);
                self.address.set(led.cloned());
                Ok(response)
            }
        }
    }

    async fn send(
        &self,
        url: Url,
        piece: Option<&Range<u64>>,
        validator: Option<HeaderValue>,
    ) -> Result<HttpResponse, HubError> {
        let own = url.origin() == self.file.url.origin();
        let mut request = self.client.request(Method::GET, url, self.file.trust);
        if let Some(token) = self.file.token.as_ref().filter(|_| own) {
            request = request.bearer(token);
        }
        request = request.traced(self.file.trace.as_ref().filter(|_| own));
        if let Some(piece) = piece {
            request = request.header(header::RANGE, range(piece));
        }
        if let Some(validator) = validator {
            request = request.header(header::IF_RANGE, validator);
        }
        self.or_fail(request.send().await)
    }
}

/// The header that asks for a piece. Servers count in 63 bits: one that is longer is the rest, however much that is.
fn range(piece: &Range<u64>) -> HeaderValue {
    let last = (piece.end <= i64::MAX as u64).then(|| (piece.end - 1).to_string());
    let range = format!("bytes={}-{}", piece.start, last.unwrap_or_default());
    HeaderValue::try_from(range).expect("digits fit a header")
}
