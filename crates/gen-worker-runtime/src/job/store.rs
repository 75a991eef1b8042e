//! A function's output → the bytes of its result.

use bytes::Bytes;
use gen_worker_core::{
    Algorithm, ByteLimit, ByteSize, Classify, Digest, FailureKind, JobFailure, Output, OutputBody, RawOutput,
    encode_value,
};
use serde::Serialize;

use super::{invoke::Returned, timings::Stage};

/// Room for a result's other fields beside its payload.
const RESULT_ENVELOPE_BYTES: u64 = 64 << 10;

impl Returned {
    /// Stores the output where the payload said, else takes it into the result, and encodes the result.
    pub(crate) async fn store(self) -> Result<Bytes, JobFailure> {
        let limit = result_limit(self.job.shop().config.max_output, self.job.shop().config.max_message_bytes);
        let watch = self.job.context.watch().clone();
        let output = match (self.output, self.target) {
            (Output::Value(value), None) => value,
            (Output::Value(value), Some(target)) => {
                let raw = RawOutput::bytes(value, "application/msgpack");
                encode_value(&self.job.stage(Stage::Store, target.store(&raw, &watch)).await?)?
            }
            (Output::Raw(raw), Some(target)) => {
                encode_value(&self.job.stage(Stage::Store, target.store(&raw, &watch)).await?)?
            }
            (Output::Raw(raw), None) => inline(raw, limit).await?,
            (Output::Deltas(_), _) => unreachable!("deltas were sent while the function ran"),
        };
        within(output, limit)
    }
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

/// A raw output that travels in the result itself.
async fn inline(raw: RawOutput, limit: u64) -> Result<Bytes, JobFailure> {
    let data = match &raw.body {
        OutputBody::Bytes(data) => data.clone(),
        OutputBody::File(path) => {
            let unreadable = |source| UnreadableOutput { source };
            let size = tokio::fs::metadata(path).await.map_err(unreadable)?.len();
            if ByteLimit::Max(ByteSize(limit)).admits(size) {
                tokio::fs::read(path).await.map_err(unreadable)?.into()
            } else {
                return Err(too_large(size, limit));
            }
        }
    };
    let inline = Inline {
        data: &data,
        content_type: &raw.content_type,
        file_name: raw.file_name.as_deref(),
        size_bytes: data.len() as u64,
        sha256: Digest::of(Algorithm::Sha256, &data).hex(),
    };
    Ok(encode_value(&inline)?)
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

/// The function returned a file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the output file cannot be read")]
struct UnreadableOutput {
    source: std::io::Error,
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
    use super::*;

    #[test]
    fn a_result_never_outgrows_its_message() {
        assert_eq!(result_limit(ByteLimit::Unlimited, 1 << 20), (1 << 20) - (64 << 10));
        assert_eq!(result_limit(ByteLimit::Max(ByteSize(10)), 1 << 20), 10);
        let refused = within(Bytes::from_static(b"abc"), 2).unwrap_err();
        assert_eq!(refused.error_message(), "Output payload too large: 3 bytes (max 2)");
    }

    #[tokio::test]
    async fn a_missing_output_fails_the_run() {
        let raw = RawOutput::file("/nowhere/at/all", "image/png");
        assert_eq!(inline(raw, 10).await.unwrap_err().kind, FailureKind::Internal);
    }
}
