//! Server-sent events out of the bytes that carry them.

use crate::events::RunEvent;

/// Longest line: the largest answer.
const MAX_LINE: usize = 128 << 20;

/// Takes bytes as they arrive and gives events as they are complete.
#[derive(Debug, Default)]
pub(crate) struct EventParser {
    line: Vec<u8>,
    id: u64,
    event_type: String,
    data: String,
}

impl EventParser {
    /// The events that these bytes complete; `None`: this is no event stream.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Option<Vec<RunEvent>> {
        let mut events = Vec::new();
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            let line = String::from_utf8(std::mem::take(&mut self.line)).ok()?;
            events.extend(self.take(line.trim_end_matches('\r')));
        }
        self.line.extend_from_slice(bytes);
        (self.line.len() <= MAX_LINE).then_some(events)
    }

    fn take(&mut self, line: &str) -> Option<RunEvent> {
        if line.is_empty() {
            return self.finish();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = value.parse().unwrap_or(0),
            "event" => value.clone_into(&mut self.event_type),
            "data" => {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // A comment, which keeps the connection alive, or a field that is not ours.
            _ => {}
        }
        None
    }

    fn finish(&mut self) -> Option<RunEvent> {
        let Self { id, event_type, data, .. } = std::mem::take(self);
        (!event_type.is_empty()).then(|| RunEvent { id, event_type, payload: data.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let text = ":\n\nid: 7\nevent: job.log\ndata: {\"a\":\ndata: 1}\n\nevent:x\r\ndata:é\r\n\r\n";
        for size in 1..text.len() {
            let mut parser = EventParser::default();
            let chunks = text.as_bytes().chunks(size);
            let events: Vec<_> = chunks.flat_map(|chunk| parser.feed(chunk).unwrap()).collect();
            let seen: Vec<_> = events.iter().map(|e| (e.id, &*e.event_type, &e.payload[..])).collect();
            let expected: [(u64, &str, &[u8]); 2] =
                [(7, "job.log", b"{\"a\":\n1}"), (0, "x", "é".as_bytes())];
            assert_eq!(seen, expected);
        }
    }
}
