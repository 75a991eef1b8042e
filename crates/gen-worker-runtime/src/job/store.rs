//! A function's output → the bytes of its result.

use std::{io, path::PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt, future::try_join_all, stream};
use gen_worker_core::{
    Algorithm, Asset, ByteLimit, ByteStream, Chunks, Classify, Digest, FailureKind, JobFailure, Output,
    OutputBody, RawOutput, WorkerError, encode_value, json_of,
    ports::{SaveMode, SaveRequest},
};
use serde::Serialize;
use tokio::{fs::File, io::AsyncReadExt};

use super::{Job, invoke::Returned, timings::Stage};

/// Room for a result's other fields beside its payload.
const RESULT_ENVELOPE_BYTES: u64 = 64 << 10;

impl Returned {
    /// Stores the output where the payload said, else takes it into the result, and encodes the result. Then stores what
    /// was attached, which the result names.
    pub(crate) async fn store(self) -> Result<Bytes, JobFailure> {
        let Self { job, output, target, _directory } = self;
        let limit = result_limit(job.shop().config.max_output, job.shop().config.max_message_bytes);
        let watch = job.context.watch();
        let output = match (output, target) {
            (Output::Value(value), None) => value,
            (Output::Value(value), Some(target)) => {
                let raw = encoded_for(value, target.content_type());
                encode_value(&job.stage(Stage::Store, target.store(&raw, watch)).await?)?
            }
            (Output::Raw(raw), Some(target)) => {
                encode_value(&job.stage(Stage::Store, target.store(&raw, watch)).await?)?
            }
            (Output::Raw(raw), None) => {
                let carried = watch.unless_canceled(carry(&job, raw, limit));
                job.stage(Stage::Store, carried).await?
            }
            (Output::Deltas(_), _) => unreachable!("deltas were sent while the function ran"),
        };
        job.store_attached().await?;
        within(output, limit)
    }
}

impl Job {
    /// Stores what the function attached; the first that cannot be stored fails the run.
    pub(super) async fn store_attached(&self) -> Result<(), JobFailure> {
        let attached = self.context.take_attached();
        if attached.is_empty() {
            return Ok(());
        }
        let (files, scope, watch) = (&self.shop().ports.files, &self.facts().scope, self.context.watch());
        let stored = attached.into_iter().map(|request| files.save(scope, request, watch));
        self.stage(Stage::Attached, try_join_all(stored)).await.map(drop)
    }
}

/// A value as the place it goes to wants it: as JSON if that says so, else as it is.
fn encoded_for(value: Bytes, content_type: Option<&str>) -> RawOutput {
    let json = content_type.filter(|content_type| is_json(content_type)).and_then(|_| json_of(&value));
    match json {
        Some(json) => RawOutput::bytes(json.to_string(), "application/json"),
        None => RawOutput::bytes(value, "application/msgpack"),
    }
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// The smaller of the operator's limit and what fits into a message.
fn result_limit(max_output: ByteLimit, max_message_bytes: usize) -> u64 {
    let fits = (max_message_bytes as u64).saturating_sub(RESULT_ENVELOPE_BYTES);
    max_output.max().map_or(fits, |max| max.min(fits))
}

fn within(output: Bytes, limit: u64) -> Result<Bytes, JobFailure> {
    if output.len() as u64 <= limit { Ok(output) } else { Err(too_large(output.len() as u64, limit)) }
}

fn too_large(bytes: u64, limit: u64) -> JobFailure {
    let text = format!("Output payload too large: {bytes} bytes (max {limit})");
    JobFailure::new(FailureKind::Validation, text.clone()).detailed(text)
}

/// A raw output that nobody said a place for: in the result if it is small enough, else at the run's file API.
async fn carry(job: &Job, raw: RawOutput, limit: u64) -> Result<Bytes, JobFailure> {
    let (size, body) = match begin(raw.body.clone(), limit).await? {
        Begun::Small(data) => {
            let encoded = inline(&raw, &data)?;
            if encoded.len() as u64 <= limit {
                return Ok(encoded);
            }
            (encoded.len() as u64, OutputBody::Bytes(data))
        }
        Begun::Large(size, body) => (size, body),
    };
    let (files, scope) = (&job.shop().ports.files, &job.facts().scope);
    if !files.has_place(scope) {
        return Err(too_large(size, limit));
    }
    let reference = job.context.output_ref(&file_name(raw.file_name.as_deref()));
    let request = SaveRequest { reference, body, mode: SaveMode::Overwrite };
    let file = files.save(scope, request, job.context.watch()).await?;
    saved(&raw, &file)
}

/// A body, as far as it was read.
enum Begun {
    /// All of it.
    Small(Bytes),
    /// More than the limit, and at least this much: the same body, from its start.
    Large(u64, OutputBody),
}

async fn begin(body: OutputBody, limit: u64) -> Result<Begun, JobFailure> {
    match body {
        OutputBody::Bytes(data) if data.len() as u64 > limit => {
            Ok(Begun::Large(data.len() as u64, data.into()))
        }
        OutputBody::Bytes(data) => Ok(Begun::Small(data)),
        OutputBody::File(path) => {
            Ok(begin_file(path, limit).await.map_err(|source| UnreadableOutput { source })?)
        }
        OutputBody::Stream(chunks) => {
            let chunks = chunks.take();
            begin_stream(chunks.ok_or_else(|| WorkerError::internal("its stream was read before"))?, limit)
                .await
        }
    }
}

/// Reads a file within the limit, and no more of it than it had at first. Other things than files may have no end, or wait for
/// whoever writes them.
async fn begin_file(path: PathBuf, limit: u64) -> io::Result<Begun> {
    let metadata = tokio::fs::metadata(&path).await?;
    let size = metadata.len();
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    if size > limit {
        return Ok(Begun::Large(size, path.into()));
    }
    let mut data = Vec::with_capacity(size as usize);
    File::open(&path).await?.take(size).read_to_end(&mut data).await?;
    Ok(Begun::Small(data.into()))
}

/// Gathers a stream within the limit. What is gathered goes before the rest when there is more.
async fn begin_stream(mut chunks: Chunks, limit: u64) -> Result<Begun, JobFailure> {
    let (mut gathered, mut size) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        size += chunk.len() as u64;
        gathered.push(chunk);
        if size > limit {
            let whole = stream::iter(gathered.into_iter().map(Ok)).chain(chunks);
            return Ok(Begun::Large(size, ByteStream::new(whole).into()));
        }
    }
    Ok(Begun::Small(gathered.concat().into()))
}

/// A name for one file among the run's outputs, without a path.
fn file_name(named: Option<&str>) -> String {
    let plain = |c: char| if matches!(c, '/' | '\\') || c.is_control() { '_' } else { c };
    match named.unwrap_or_default() {
        "" | "." | ".." => "output".to_owned(),
        named => named.chars().map(plain).collect(),
    }
}

fn inline(raw: &RawOutput, data: &Bytes) -> Result<Bytes, JobFailure> {
    let inline = Inline {
        data,
        content_type: &raw.content_type,
        file_name: raw.file_name.as_deref(),
        size_bytes: data.len() as u64,
        sha256: Digest::of(Algorithm::Sha256, data).hex(),
    };
    Ok(encode_value(&inline)?)
}

fn saved(raw: &RawOutput, file: &Asset) -> Result<Bytes, JobFailure> {
    let saved = Saved {
        file,
        content_type: &raw.content_type,
        file_name: raw.file_name.as_deref(),
        size_bytes: file.size_bytes(),
        sha256: file.sha256(),
    };
    Ok(encode_value(&saved)?)
}

/// A raw output as the map that a caller without `output_upload` gets.
#[derive(Serialize)]
struct Inline<'a> {
    #[serde(with = "serde_bytes")]
    data: &'a [u8],
    content_type: &'a str,
    file_name: Option<&'a str>,
    size_bytes: u64,
    sha256: String,
}

/// The same of one that was saved because it is too large.
#[derive(Serialize)]
struct Saved<'a> {
    file: &'a Asset,
    content_type: &'a str,
    file_name: Option<&'a str>,
    size_bytes: Option<u64>,
    sha256: Option<&'a str>,
}

/// The function returned a file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the output file cannot be read")]
struct UnreadableOutput {
    source: io::Error,
}

impl Classify for UnreadableOutput {
    fn kind(&self) -> FailureKind {
        FailureKind::Internal
    }

    fn safe_message(&self) -> String {
        "internal error".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use gen_worker_core::ByteSize;

    use super::*;

    #[test]
    fn a_result_never_outgrows_its_message() {
        assert_eq!(result_limit(ByteLimit::Unlimited, 1 << 20), (1 << 20) - (64 << 10));
        assert_eq!(result_limit(ByteLimit::Max(ByteSize(10)), 1 << 20), 10);
        let refused = within(Bytes::from_static(b"abc"), 2).unwrap_err();
        assert_eq!(refused.error_message(), "Output payload too large: 3 bytes (max 2)");
    }

    #[test]
    fn a_value_is_json_where_json_is_wanted() {
        // {"a": 18446744073709551615}
        let value = Bytes::from_static(b"\x81\xa1a\xcf\xff\xff\xff\xff\xff\xff\xff\xff");
        for (content_type, json) in [
            (None, false),
            (Some("image/png"), false),
            (Some("application/json"), true),
            (Some("Application/LD+JSON; charset=utf-8"), true),
        ] {
            let raw = encoded_for(value.clone(), content_type);
            let OutputBody::Bytes(data) = raw.body else { panic!("bytes") };
            assert_eq!(data == r#"{"a":18446744073709551615}"#, json, "{content_type:?}");
            assert_eq!(data == value, !json, "{content_type:?}");
        }
    }

    #[tokio::test]
    async fn a_body_is_gathered_within_the_limit_and_whole_beyond_it() {
        let stream = |count: usize| {
            let chunks = (0..count).map(|_| Ok(Bytes::from_static(b"ab")));
            OutputBody::Stream(ByteStream::new(stream::iter(chunks.collect::<Vec<_>>())))
        };
        let Begun::Small(data) = begin(stream(2), 4).await.unwrap() else { panic!("small") };
        assert_eq!(data, "abab");
        let Begun::Large(6, OutputBody::Stream(whole)) = begin(stream(4), 4).await.unwrap() else {
            panic!("large")
        };
        let chunks: Vec<_> = whole.take().unwrap().map(Result::unwrap).collect().await;
        assert_eq!(chunks.concat(), b"abababab");
        assert!(matches!(begin(OutputBody::Bytes("abcde".into()), 4).await.unwrap(), Begun::Large(5, _)));
        let failing = stream::iter([Ok(Bytes::new()), Err(WorkerError::resource("no more room"))]);
        let failure = begin(ByteStream::new(failing).into(), 4).await.map(drop).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Resource);
    }

    #[test]
    fn a_file_name_leads_nowhere() {
        for (named, plain) in [
            (None, "output"),
            (Some(".."), "output"),
            (Some("../a\\b\n.png"), ".._a_b_.png"),
            (Some("cat 1.png"), "cat 1.png"),
        ] {
            assert_eq!(file_name(named), plain);
        }
    }

    #[tokio::test]
    async fn a_missing_output_fails_the_run() {
        for missing in ["/nowhere/at/all", "/dev/null", "/"] {
            let failed = begin(OutputBody::File(missing.into()), 10).await.map(drop);
            assert_eq!(failed.unwrap_err().kind, FailureKind::Internal, "{missing}");
        }
    }
}
