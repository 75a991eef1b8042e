//! Bytes gathered until they are worth a write.

use bytes::Bytes;
use gen_worker_net::NetError;

/// How many bytes are gathered before a thread is asked to write them.
const BATCH_BYTES: u64 = 1 << 20;

/// Bytes that follow each other, up to where they are to end.
#[derive(Debug)]
pub(super) struct Batch {
    start: u64,
    bytes: Vec<Bytes>,
    length: u64,
    end: Option<u64>,
    beyond: u64,
}

impl Batch {
    pub(super) fn new(start: u64, end: Option<u64>) -> Self {
        Self { start, bytes: Vec::new(), length: 0, end, beyond: 0 }
    }

    /// Takes the next bytes; false: the end was there before them all.
    pub(super) fn take(&mut self, bytes: &Bytes) -> bool {
        let room = self.end.map_or(u64::MAX, |end| end - self.start - self.length);
        let taken = room.min(bytes.len() as u64);
        self.bytes.push(bytes.slice(..taken as usize));
        self.length += taken;
        self.beyond = bytes.len() as u64 - taken;
        self.beyond == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.length >= BATCH_BYTES
    }

    /// Where what was gathered begins, and it. The batch is empty after.
    pub(super) fn empty(&mut self) -> (u64, Vec<Bytes>) {
        let start = self.start;
        self.start += std::mem::take(&mut self.length);
        (start, std::mem::take(&mut self.bytes))
    }

    /// Whether just what was to come has come, once nothing more does.
    pub(super) fn complete(&self) -> Result<(), NetError> {
        match self.end {
            Some(expected) if expected != self.start + self.beyond => {
                Err(NetError::Size { expected, actual: self.start + self.beyond })
            }
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_and_less_than_was_to_come_are_told() {
        for (sent, whole) in [(&[3, 4][..], true), (&[3, 3], false), (&[3, 5], false), (&[9], false)] {
            let mut batch = Batch::new(10, Some(17));
            for length in sent {
                batch.take(&Bytes::from(vec![0; *length]));
            }
            let (start, bytes) = batch.empty();
            let taken: usize = bytes.iter().map(Bytes::len).sum();
            assert_eq!((start, batch.complete().is_ok()), (10, whole), "{sent:?}");
            assert!(taken <= 7);
        }
    }
}
