//! What functions give back.

use std::{
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{asset::Asset, failure::WorkerError, function::OutputMode, schema::schema_of};

/// The bytes of something to store.
#[derive(Debug, Clone)]
pub enum OutputBody {
    /// In memory.
    Bytes(Bytes),
    /// A file that nobody changes until the run has ended.
    File(PathBuf),
    /// Chunks that are made while they are read. They are kept on disk until they are stored, for each further try.
    Stream(ByteStream),
}

impl From<Vec<u8>> for OutputBody {
    fn from(data: Vec<u8>) -> Self {
        Self::Bytes(data.into())
    }
}

impl From<Bytes> for OutputBody {
    fn from(data: Bytes) -> Self {
        Self::Bytes(data)
    }
}

impl From<PathBuf> for OutputBody {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<ByteStream> for OutputBody {
    fn from(chunks: ByteStream) -> Self {
        Self::Stream(chunks)
    }
}

/// The chunks of a [`ByteStream`].
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, WorkerError>> + Send>>;

/// Chunks that can be read once, and end at the first error. Clones are the same stream.
#[derive(Clone)]
pub struct ByteStream(Arc<Mutex<Option<Chunks>>>);

impl ByteStream {
    /// Wraps a stream.
    pub fn new(chunks: impl Stream<Item = Result<Bytes, WorkerError>> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(chunks)))))
    }

    /// The chunks; `None` when they were taken before.
    pub fn take(&self) -> Option<Chunks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps `guard` alive until the chunks are dropped.
    pub fn hold(&self, guard: impl Send + 'static) {
        let mut chunks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *chunks = chunks.take().map(|chunks| -> Chunks {
            Box::pin(chunks.inspect(move |_| {
                let _ = &guard;
            }))
        });
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByteStream")
    }
}

/// One file as a function's whole output, instead of a value.
///
/// Stored where the input's `output_upload` says; without one it comes back inline, as the map
/// `{"data", "content_type", "file_name", "size_bytes", "sha256"}`. One that is too large for that is saved at the run's
/// file API, if there is one, and comes back with `file`, an asset, in the place of `data`.
#[derive(Debug, Clone)]
pub struct RawOutput {
    /// The content.
    pub body: OutputBody,
    /// Its media type.
    pub content_type: String,
    /// A name to show; `None`: it has none.
    pub file_name: Option<String>,
}

impl RawOutput {
    /// Bytes in memory.
    pub fn bytes(data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        Self { body: OutputBody::Bytes(data.into()), content_type: content_type.into(), file_name: None }
    }

    /// A file on this machine, left where it is.
    pub fn file(path: impl Into<PathBuf>, content_type: impl Into<String>) -> Self {
        Self { body: OutputBody::File(path.into()), content_type: content_type.into(), file_name: None }
    }

    /// Chunks that are made while they are read, by a function that needs no more memory than one of them. The GPU is held
    /// until the last one, since making them is what the function does.
    pub fn stream(
        chunks: impl Stream<Item = Result<Bytes, WorkerError>> + Send + 'static,
        content_type: impl Into<String>,
    ) -> Self {
        let body = OutputBody::Stream(ByteStream::new(chunks));
        Self { body, content_type: content_type.into(), file_name: None }
    }

    /// The same output under a name.
    #[must_use]
    pub fn named(mut self, file_name: impl Into<String>) -> Self {
        self.file_name = Some(file_name.into());
        self
    }
}

/// One item of an incremental output: compact JSON with sorted keys, in ASCII, as the wire carries it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delta {
    /// The JSON text.
    pub json: Bytes,
}

impl Delta {
    /// Encodes an item.
    ///
    /// # Errors
    /// The item has no JSON form: a map whose keys are not text, say.
    pub fn of(item: &impl Serialize) -> Result<Self, WorkerError> {
        let text = serde_json::to_value(item)?.to_string();
        Ok(Self { json: escape_non_ascii(text).into() })
    }
}

fn escape_non_ascii(text: String) -> String {
    if text.is_ascii() {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

/// A stream of items that reach the caller while the function still works.
///
/// A function that returns `impl Stream<Item = Result<T, WorkerError>>` is wrapped into one by the macro.
pub struct DeltaStream<T> {
    items: Pin<Box<dyn Stream<Item = Result<T, WorkerError>> + Send>>,
}

impl<T> DeltaStream<T> {
    /// Wraps a stream; it ends at the first error.
    pub fn new(items: impl Stream<Item = Result<T, WorkerError>> + Send + 'static) -> Self {
        Self { items: Box::pin(items) }
    }
}

impl<T> fmt::Debug for DeltaStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeltaStream")
    }
}

/// A function's output with its type erased.
pub enum Output {
    /// A value, encoded as MessagePack with field names as keys.
    Value(Bytes),
    /// One file.
    Raw(RawOutput),
    /// Items to come.
    Deltas(Pin<Box<dyn Stream<Item = Result<Delta, WorkerError>> + Send>>),
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(bytes) => write!(f, "Value({} bytes)", bytes.len()),
            Self::Raw(raw) => write!(f, "Raw({})", raw.content_type),
            Self::Deltas(_) => f.write_str("Deltas"),
        }
    }
}

/// A type that a function may return: any `Serialize + JsonSchema`, [`RawOutput`], or [`DeltaStream`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a function's output",
    note = "derive `serde::Serialize` and `schemars::JsonSchema` for it, or return `RawOutput` or a stream of deltas"
)]
pub trait IntoOutput: Send + 'static {
    /// How the output comes.
    const MODE: OutputMode;

    /// The schema of the output, or of one delta.
    fn schema() -> Value;

    /// The Rust type of the output, or of one delta.
    fn type_name() -> &'static str {
        std::any::type_name::<Self>()
    }

    /// The output, encoded.
    ///
    /// # Errors
    /// The value cannot be encoded.
    fn into_output(self) -> Result<Output, WorkerError>;
}

impl<T: Serialize + JsonSchema + Send + 'static> IntoOutput for T {
    const MODE: OutputMode = OutputMode::Single;

    fn schema() -> Value {
        schema_of::<T>()
    }

    fn into_output(self) -> Result<Output, WorkerError> {
        encode_value(&self).map(Output::Value)
    }
}

/// A value as MessagePack: field names as keys, nothing left out, times and UUIDs as text.
///
/// # Errors
/// The value cannot be encoded.
pub fn encode_value(value: &impl Serialize) -> Result<Bytes, WorkerError> {
    let mut bytes = Vec::new();
    let mut serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map().with_human_readable();
    value.serialize(&mut serializer)?;
    Ok(bytes.into())
}

impl IntoOutput for RawOutput {
    const MODE: OutputMode = OutputMode::Raw;

    fn schema() -> Value {
        serde_json::json!({
            "title": "RawOutput",
            "type": "object",
            "properties": {
                "url": {"type": "string"},
                "data": {"type": "string", "contentEncoding": "base64"},
                "file": schema_of::<Asset>(),
                "content_type": {"type": "string"},
                "file_name": {"type": "string"},
                "size_bytes": {"type": "integer"},
                "sha256": {"type": "string"},
            },
            "required": ["content_type", "size_bytes", "sha256"],
        })
    }

    fn into_output(self) -> Result<Output, WorkerError> {
        Ok(Output::Raw(self))
    }
}

impl<T: Serialize + JsonSchema + Send + 'static> IntoOutput for DeltaStream<T> {
    const MODE: OutputMode = OutputMode::Incremental;

    fn schema() -> Value {
        schema_of::<T>()
    }

    fn type_name() -> &'static str {
        std::any::type_name::<T>()
    }

    fn into_output(self) -> Result<Output, WorkerError> {
        Ok(Output::Deltas(Box::pin(self.items.map(|item| item.and_then(|item| Delta::of(&item))))))
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[derive(Serialize, JsonSchema)]
    struct Out {
        y: i64,
        note: Option<String>,
    }

    #[test]
    fn a_value_is_a_map_with_nil_for_nothing() {
        let Ok(Output::Value(bytes)) = (Out { y: 2, note: None }).into_output() else { panic!("a value") };
        assert_eq!(hex::encode(bytes), "82a17902a46e6f7465c0");
    }

    #[test]
    fn a_stream_is_read_once_and_keeps_what_it_holds() {
        let guard = Arc::new(());
        let chunks = futures_util::stream::iter([Ok(Bytes::from_static(b"a")), Ok(Bytes::from_static(b"b"))]);
        let stream = ByteStream::new(chunks);
        stream.hold(guard.clone());
        let mut chunks = stream.clone().take().unwrap();
        assert!(stream.take().is_none());
        let mut context = Context::from_waker(Waker::noop());
        assert!(matches!(chunks.poll_next_unpin(&mut context), Poll::Ready(Some(Ok(_)))));
        assert_eq!(Arc::strong_count(&guard), 2);
        drop(chunks);
        assert_eq!(Arc::strong_count(&guard), 1);
    }

    #[test]
    fn a_delta_is_sorted_compact_ascii() {
        let delta = Delta::of(&Out { y: 1, note: Some("é😀".into()) }).unwrap();
        assert_eq!(&delta.json[..], br#"{"note":"\u00e9\ud83d\ude00","y":1}"#);
    }
}
