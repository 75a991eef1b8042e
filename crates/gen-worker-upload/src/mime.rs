//! The media type of a saved file: what its first bytes say, then what its name says.

/// What is taken when neither says anything.
const UNKNOWN: &str = "application/octet-stream";

/// The media type of a file with this name that starts with these bytes.
pub(crate) fn media_type(head: &[u8], name: &str) -> &'static str {
    sniff(head).or_else(|| mime_guess::from_path(name).first_raw()).unwrap_or(UNKNOWN)
}

fn sniff(head: &[u8]) -> Option<&'static str> {
    match head {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_win_over_the_name() {
        for (head, name, found) in [
            (&b"\x89PNG\r\n\x1a\n..."[..], "a.jpg", "image/png"),
            (b"\xff\xd8\xff\xe0", "a", "image/jpeg"),
            (b"GIF89a", "a", "image/gif"),
            (b"RIFF\x01\x02\x03\x04WEBPVP8 ", "a.wav", "image/webp"),
            (b"RIFF\x01\x02\x03\x04WAVE", "runs/1/outputs/a.wav", "audio/wav"),
            (b"{}", "a.json", "application/json"),
            (b"", "a", "application/octet-stream"),
        ] {
            assert_eq!(media_type(head, name), found, "{name}");
        }
    }
}
