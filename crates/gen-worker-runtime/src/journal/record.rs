//! The codec: a file's key, then marker, length, checksum and message, again and again.

use uuid::Uuid;

use crate::wire::Message;

/// Starts the file and each record, with the version of the format: where a record cannot be read, the next one is found by
/// it.
const MARKER: [u8; 4] = *b"GWJ1";

/// Marker and key.
pub(super) const HEADER: usize = 4 + 32;

/// Marker, length (`u64`, little-endian), and the first eight bytes of the keyed BLAKE3 hash of length and message.
const HEAD: usize = 4 + 8 + 8;

/// Writes and reads the records of one file. The key is the file's own and secret: without it, an output that holds what
/// looks like a record would be taken for one when the record around it is torn.
pub(super) struct Codec([u8; 32]);

/// What a journal holds.
#[derive(Default)]
pub(super) struct Contents {
    /// Every record that could be read, in order.
    pub messages: Vec<Message>,
    /// Bytes that are no record, with one behind them; all of them in a file that starts otherwise.
    pub corrupt: usize,
    /// Bytes at the end that are no record: the process ended while it wrote them.
    pub torn: usize,
}

impl Codec {
    /// For a new file.
    pub(super) fn fresh() -> Self {
        Self(*blake3::hash(Uuid::new_v4().as_bytes()).as_bytes())
    }

    /// What the file starts with.
    pub(super) fn header(&self) -> Vec<u8> {
        [MARKER.as_slice(), &self.0].concat()
    }

    /// The record of a message.
    pub(super) fn encode(&self, message: &Message) -> Vec<u8> {
        let mut record = Vec::with_capacity(HEAD + message.len());
        let length = (message.len() as u64).to_le_bytes();
        record.extend_from_slice(&MARKER);
        record.extend_from_slice(&length);
        record.extend_from_slice(&[0; 8]);
        record.extend_from_slice(message.as_bytes());
        let sum = self.checksum(length, &record[HEAD..]);
        record[HEAD - sum.len()..HEAD].copy_from_slice(&sum);
        record
    }

    /// The record that these bytes start with, and what follows it.
    fn first<'a>(&self, bytes: &'a [u8]) -> Option<(Message, &'a [u8])> {
        let bytes = bytes.strip_prefix(&MARKER)?;
        let (length, bytes) = bytes.split_first_chunk::<8>()?;
        let (sum, bytes) = bytes.split_first_chunk::<8>()?;
        let (body, rest) = bytes.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        (self.checksum(*length, body) == *sum).then(|| (body.into(), rest))
    }

    fn checksum(&self, length: [u8; 8], body: &[u8]) -> [u8; 8] {
        let hash = blake3::Hasher::new_keyed(&self.0).update(&length).update(body).finalize();
        *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }
}

/// What the record of a message takes, in bytes.
pub(super) fn size(message: &Message) -> u64 {
    (HEAD + message.len()) as u64
}

/// Reads every record that is whole, whatever lies between them.
pub(super) fn decode(file: &[u8]) -> Contents {
    let header = file.strip_prefix(&MARKER).and_then(|bytes| bytes.split_first_chunk::<32>());
    let Some((key, mut bytes)) = header else {
        return Contents { corrupt: file.len(), ..Contents::default() };
    };
    let (codec, mut contents, mut skipped) = (Codec(*key), Contents::default(), 0);
    while !bytes.is_empty() {
        if let Some((message, rest)) = codec.first(bytes) {
            contents.messages.push(message);
            contents.corrupt += std::mem::take(&mut skipped);
            bytes = rest;
        } else {
            let next = next_marker(bytes);
            skipped += next;
            bytes = &bytes[next..];
        }
    }
    Contents { torn: skipped, ..contents }
}

/// Where the next record may start, past the first byte.
fn next_marker(bytes: &[u8]) -> usize {
    let found = bytes[1..].windows(MARKER.len()).position(|window| window == MARKER);
    found.map_or(bytes.len(), |at| at + 1)
}
