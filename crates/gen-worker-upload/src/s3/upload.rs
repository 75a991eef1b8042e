//! An upload in parts: begun, filled, put together, or forgotten.

use std::{sync::Arc, thread};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future::try_join, stream};
use gen_worker_core::{Digest, OutputBody};
use gen_worker_net::{HeaderMap, HttpResponse, NetError, header};
use jiff::Timestamp;
use rusty_s3::Method;
use tokio::{
    runtime::{Builder, Handle},
    sync::mpsc,
    time::timeout,
};
use tracing::{Instrument, Span, warn};

use super::{
    Sending, Store, Taken,
    answer::{self, http_date},
    cause, checksum_refused,
    signer::Question,
};
use crate::{
    content::{MeasuredPart, PartMeter},
    error::UploadError,
    multipart::PartPlan,
    source::Piece,
    spool::Body,
    transfer::Connection,
    unfinished::{Begun, FORGET_TIMEOUT},
};

/// Parts of one object on their way at once.
const PARTS_IN_FLIGHT: usize = 4;
/// Parts that are measured before one of those in flight is done.
const PARTS_AHEAD: usize = 2;
/// How often an upload is aborted at most, as long as it shows parts.
const ABORTS: usize = 3;
/// Stores date an object from when its upload was begun, by whole seconds and by the clock of any of their machines.
const DATED_BEFORE_SECONDS: i64 = 5;

/// An upload that was begun. Dropped while it is open, it is aborted in the background.
pub(super) struct Upload {
    store: Arc<Store>,
    id: String,
    checked: bool,
    /// When it was begun, by the store's clock; `None`: the store has none.
    since: Option<Timestamp>,
    /// `None`: it is open no more.
    open: Option<Begun>,
}

/// A part that the store has.
struct Held {
    number: u64,
    etag: String,
    crc32c: u32,
}

/// An object that may be the one that was put together.
struct Wanted {
    size: u64,
    /// The CRC-32C of its parts' CRC-32Cs, as S3 writes it.
    checksum: String,
    since: Option<Timestamp>,
}

impl Upload {
    /// Begins one. Dropped meanwhile, it begins it nevertheless, to abort it then: that takes the name that the store gives
    /// it. It ends by itself within its tries and their timeouts; nobody is left to wait for it.
    pub(super) async fn begin(store: &Arc<Store>, content_type: &str) -> Result<Self, UploadError> {
        let beginning = Self::begin_checked(store.clone(), content_type.to_owned());
        let begun = Handle::current().spawn(beginning.in_current_span()).await;
        begun.unwrap_or(Err(UploadError::Unconfirmed))
    }

    async fn begin_checked(store: Arc<Store>, content_type: String) -> Result<Self, UploadError> {
        match Self::begin_as(&store, &content_type, true).await {
            Err(error) if checksum_refused(&error) => Self::begin_as(&store, &content_type, false).await,
            begun => begun,
        }
    }

    async fn begin_as(store: &Arc<Store>, content_type: &str, checked: bool) -> Result<Self, UploadError> {
        let mut headers = vec![("content-type", content_type.to_owned())];
        if checked {
            headers.push(("x-amz-checksum-algorithm", "CRC32C".to_owned()));
        }
        let open = Some(store.transfers.unfinished().begin());
        let query = vec![("uploads", "1".to_owned())];
        let answer = store.send(Question { method: Method::Post, query, headers }, None).await?;
        let since = answer.header(&header::DATE).and_then(http_date);
        let id = answer::element(&answer::text(answer).await?, "UploadId");
        Ok(Self { store: store.clone(), id: id.ok_or(UploadError::Unconfirmed)?, checked, since, open })
    }

    /// Sends the parts while the body is measured a few parts ahead, and has the store put them together.
    pub(super) async fn fill(&self, sending: &Sending<'_>, plan: PartPlan) -> Result<Taken, UploadError> {
        let (give, take) = mpsc::channel(PARTS_AHEAD);
        let measured = stream::unfold(take, async |mut parts| Some((parts.recv().await?, parts)));
        let parts = measured.map(|part| self.part(sending, part)).buffer_unordered(PARTS_IN_FLIGHT);
        let measuring = self.measure(sending.body, plan, give);
        let (sha256, mut parts) = try_join(measuring, parts.try_collect::<Vec<Held>>()).await?;
        parts.sort_by_key(|part| part.number);
        Ok(Taken { sha256, etag: Some(self.complete(&parts, sending.size).await?) })
    }

    async fn measure(
        &self,
        body: &Body,
        plan: PartPlan,
        give: mpsc::Sender<MeasuredPart>,
    ) -> Result<Digest, UploadError> {
        let mut meter = PartMeter::new(body).await?;
        for part in plan.parts() {
            let place = self.store.transfers.place().await;
            let measured;
            (meter, measured) = meter.next(part).await?;
            drop(place);
            // It is taken as long as no part has failed, which ends this too.
            give.send(measured).await.ok();
        }
        Ok(meter.finish())
    }

    async fn part(&self, sending: &Sending<'_>, measured: MeasuredPart) -> Result<Held, UploadError> {
        let (number, crc32c) = (measured.part.number, measured.crc32c);
        let headers = match self.checked {
            true => vec![("x-amz-checksum-crc32c", base64(crc32c))],
            false => Vec::new(),
        };
        let query = vec![("partNumber", number.to_string()), ("uploadId", self.id.clone())];
        let piece = Piece::new(sending.body, measured.part.range, &sending.progress).measured(Some(crc32c));
        let question = Question { method: Method::Put, query, headers };
        let answer = self.store.put(question, piece).await?;
        let etag = answer::etag(answer.headers()).ok_or(UploadError::Unconfirmed)?;
        Ok(Held { number, etag, crc32c })
    }

    /// Has the parts put together; says what the store calls the whole. An answer that is lost leaves the object there, or
    /// a store that knows the upload no more, so that the object itself is asked.
    async fn complete(&self, parts: &[Held], size: u64) -> Result<String, UploadError> {
        let list = Bytes::from(self.list(parts));
        let attempt = |connection| self.put_together(list.clone(), connection);
        match self.store.transfers.retry(attempt, cause).await {
            Err(error) if may_be_whole(&error) => {
                let wanted = Wanted { size, checksum: checksum_of(parts), since: self.since };
                self.find(&wanted).await.ok_or(error)
            }
            answered => answered,
        }
    }

    /// The answer may begin as a success and end as a refusal.
    async fn put_together(&self, list: Bytes, connection: Connection) -> Result<String, UploadError> {
        let query = vec![("uploadId", self.id.clone())];
        let question = Question { method: Method::Post, query, headers: Vec::new() };
        let body = Arc::new(OutputBody::Bytes(list));
        let text = answer::text(self.store.attempt(&question, Some(body), connection).await?).await?;
        match text.contains("CompleteMultipartUploadResult") {
            true => answer::element(&text, "ETag").ok_or(UploadError::Unconfirmed),
            false => Err(answer::late_refusal(&text)),
        }
    }

    /// What the store calls the object that is wanted; `None`: it is not there, as far as can be told.
    async fn find(&self, wanted: &Wanted) -> Option<String> {
        let headers = vec![("x-amz-checksum-mode", "ENABLED".to_owned())];
        let question = Question { method: Method::Head, query: Vec::new(), headers };
        let attempt = || self.store.attempt(&question, None, Connection::Fresh);
        let found = self.store.transfers.client().retry(attempt, cause).await.ok()?;
        if wanted.is(found.headers()) { answer::etag(found.headers()) } else { None }
    }

    fn list(&self, parts: &[Held]) -> String {
        let mut xml =
            r#"<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">"#.to_owned();
        for Held { number, etag, crc32c } in parts {
            let etag = answer::escaped(etag);
            xml += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag>");
            if self.checked {
                xml += &format!("<ChecksumCRC32C>{}</ChecksumCRC32C>", base64(*crc32c));
            }
            xml += "</Part>";
        }
        xml + "</CompleteMultipartUpload>"
    }

    pub(super) fn keep(mut self) {
        self.open = None;
    }

    /// Tells the store to forget the parts, and waits for it.
    pub(super) async fn abort(mut self) {
        abort(&self.store, &self.id).await;
        self.open = None;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(begun) = self.open.take() {
            abort_elsewhere(self.store.clone(), std::mem::take(&mut self.id), begun);
        }
    }
}

/// On a thread and a runtime of its own: the runtime that dropped the upload may be about to end.
fn abort_elsewhere(store: Arc<Store>, id: String, begun: Begun) {
    let span = Span::current();
    let aborting = move || {
        let _span = span.enter();
        match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                runtime.block_on(abort(&store, &id));
                // A name that is still looked up keeps nobody waiting.
                runtime.shutdown_background();
            }
            Err(error) => warn!(%error, "an unfinished S3 upload could not be aborted"),
        }
        drop(begun);
    };
    if let Err(error) = thread::Builder::new().name("abort".to_owned()).spawn(aborting) {
        warn!(%error, "an unfinished S3 upload could not be aborted");
    }
}

/// Has the store forget an upload, as often as it still shows parts: one that was on its way may be kept after the others
/// were forgotten.
async fn abort(store: &Store, id: &str) {
    let forgetting = async {
        for _ in 0..ABORTS {
            forget(store, id).await?;
            if !has_parts(store, id).await? {
                return Ok(true);
            }
        }
        Ok::<_, UploadError>(false)
    };
    match timeout(FORGET_TIMEOUT, forgetting).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => warn!("an unfinished S3 upload was aborted and has parts nevertheless"),
        Ok(Err(error)) => warn!(%error, "an unfinished S3 upload could not be aborted"),
        Err(_) => warn!("an unfinished S3 upload could not be aborted in time"),
    }
}

async fn forget(store: &Store, id: &str) -> Result<(), UploadError> {
    match ask(store, id, Method::Delete, None).await {
        Err(error) if !is_gone(&error) => Err(error),
        _ => Ok(()),
    }
}

async fn has_parts(store: &Store, id: &str) -> Result<bool, UploadError> {
    match ask(store, id, Method::Get, Some(("max-parts", "1".to_owned()))).await {
        Ok(list) => Ok(answer::text(list).await?.contains("<Part>")),
        Err(error) if is_gone(&error) => Ok(false),
        // Who may write may not be allowed to list, and not every store can: it is forgotten as far as can be told.
        Err(UploadError::S3 { source: NetError::Status { status, .. }, .. })
            if matches!(status.as_u16(), 403 | 405 | 501) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Waits for no place, and dials: what gave the upload up may hold all places, and have ended what drives a connection.
async fn ask(
    store: &Store,
    id: &str,
    method: Method,
    more: Option<(&'static str, String)>,
) -> Result<HttpResponse, UploadError> {
    let query = more.into_iter().chain([("uploadId", id.to_owned())]).collect();
    let question = Question { method, query, headers: Vec::new() };
    let attempt = || store.attempt(&question, None, Connection::Fresh);
    store.transfers.client().retry(attempt, cause).await
}

fn is_gone(error: &UploadError) -> bool {
    matches!(error, UploadError::S3 { source: NetError::Status { status, .. }, .. } if *status == 404)
}

/// Whether the parts may have been put together although the store did not say so.
fn may_be_whole(error: &UploadError) -> bool {
    match error {
        UploadError::S3 { code: Some(code), .. } if code == "NoSuchUpload" => true,
        _ => cause(error).is_some_and(NetError::is_transient),
    }
}

fn base64(crc32c: u32) -> String {
    STANDARD.encode(crc32c.to_be_bytes())
}

fn checksum_of(parts: &[Held]) -> String {
    let checksums: Vec<u8> = parts.iter().flat_map(|part| part.crc32c.to_be_bytes()).collect();
    format!("{}-{}", base64(crc32c::crc32c(&checksums)), parts.len())
}

impl Wanted {
    /// Whether the object that a store describes so is the one. Where it knows no checksum of the parts, its date must rule
    /// out one of the same size that was there before.
    fn is(&self, said: &HeaderMap) -> bool {
        let text = |name: &str| said.get(name).and_then(|value| value.to_str().ok());
        let has_size = text("content-length") == Some(self.size.to_string().as_str());
        // Of another kind are those without a number of parts.
        let of_parts = text("x-amz-checksum-crc32c").filter(|checksum| checksum.contains('-'));
        let is_new = |since| {
            let modified = text("last-modified").and_then(http_date);
            modified.is_some_and(|modified| modified.as_second() + DATED_BEFORE_SECONDS >= since)
        };
        has_size
            && of_parts.map_or_else(
                || self.since.map(Timestamp::as_second).is_some_and(is_new),
                |told| told == self.checksum,
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Vec<Held> {
        (1..=2).map(|number| Held { number, etag: String::new(), crc32c: number as u32 }).collect()
    }

    #[test]
    fn an_object_is_known_by_its_checksum_else_by_its_date() {
        let since = "2015-10-21T07:28:00Z".parse().ok();
        let wanted = Wanted { size: 7, checksum: checksum_of(&parts()), since };
        let undated = Wanted { since: None, checksum: checksum_of(&parts()), ..wanted };
        let (ours, before) = ("Wed, 21 Oct 2015 07:27:59 GMT", "Wed, 21 Oct 2015 07:27:00 GMT");
        let checksum = wanted.checksum.as_str();
        for (size, told, modified, is) in [
            ("7", checksum, before, [true, true]),
            ("8", checksum, ours, [false, false]),
            ("7", "AAAAAA==-2", ours, [false, false]),
            ("7", "AAAAAA==", ours, [true, false]),
            ("7", "", ours, [true, false]),
            ("7", "", before, [false, false]),
            ("7", "", "yesterday", [false, false]),
        ] {
            let mut said = HeaderMap::new();
            said.insert("content-length", size.parse().unwrap());
            said.insert("last-modified", modified.parse().unwrap());
            if !told.is_empty() {
                said.insert("x-amz-checksum-crc32c", told.parse().unwrap());
            }
            assert_eq!([&wanted, &undated].map(|wanted| wanted.is(&said)), is, "{size} {told} {modified}");
        }
    }

    #[test]
    fn the_checksum_of_parts_says_how_many_there_are() {
        // As in the example of RFC 3720: 32 bytes of zeroes are the CRC-32C aa36918a.
        let zeroes: Vec<_> = (1..=8).map(|number| Held { number, etag: String::new(), crc32c: 0 }).collect();
        assert_eq!(checksum_of(&zeroes), format!("{}-8", STANDARD.encode([0x8a, 0x91, 0x36, 0xaa])));
    }
}
