//! What kind of file it is: by its first bytes, else by what the server says, else by its name.

use mime_guess::MimeGuess;

/// How many of a file's first bytes are looked at.
pub(super) const HEAD_BYTES: usize = 512;
/// Longest extension taken from a name, in bytes.
const MAX_EXTENSION_BYTES: usize = 10;

/// The media type of a file; `None`: nothing says it.
pub(super) fn of(head: &[u8], told: Option<&str>, path: &str) -> Option<String> {
    let told = || told.map(essence).filter(|told| is_telling(told));
    let named = || MimeGuess::from_path(path).first_raw().map(str::to_owned);
    sniff(head).map(str::to_owned).or_else(told).or_else(named)
}

/// The extension for a file's name, with its dot: the path's, else the media type's, else none.
pub(super) fn extension(path: &str, mime_type: Option<&str>) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    let written = name.rsplit_once('.').map(|(_, extension)| extension).filter(|extension| {
        (1..=MAX_EXTENSION_BYTES).contains(&extension.len())
            && extension.chars().all(|c| c.is_ascii_alphanumeric())
    });
    let known = match mime_type {
        Some("image/png") => Some("png"),
        Some("image/jpeg") => Some("jpg"),
        Some("image/webp") => Some("webp"),
        Some("image/gif") => Some("gif"),
        Some(_) | None => None,
    };
    written.or(known).map_or_else(String::new, |extension| format!(".{extension}"))
}

fn sniff(head: &[u8]) -> Option<&'static str> {
    if head.starts_with(b"\x89PNG\r\n\x1a\n") {
        Some("image/png")
    } else if head.starts_with(b"\xff\xd8\xff") {
        Some("image/jpeg")
    } else if head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a") {
        Some("image/gif")
    } else if head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
        Some("image/webp")
    } else {
        None
    }
}

/// The type without its parameters, in lower case.
fn essence(told: &str) -> String {
    let essence = told.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

fn is_telling(told: &str) -> bool {
    told.contains('/') && told != "application/octet-stream"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_goes_before_what_is_said() {
        let png = b"\x89PNG\r\n\x1a\n...";
        let webp = b"RIFF\0\0\0\0WEBPVP8 ";
        for (head, told, path, mime) in [
            (&png[..], Some("image/gif"), "a.txt", Some("image/png")),
            (webp, None, "", Some("image/webp")),
            (b"GIF89a", None, "", Some("image/gif")),
            (b"\xff\xd8\xff\xe0", None, "", Some("image/jpeg")),
            (b"hello", Some("Text/CSV; charset=utf-8"), "a.png", Some("text/csv")),
            (b"hello", Some("application/octet-stream"), "a/b.json", Some("application/json")),
            (b"hello", None, "a", None),
            (b"", None, "", None),
        ] {
            assert_eq!(of(head, told, path).as_deref(), mime, "{path}");
        }
    }

    #[test]
    fn an_extension_is_short_and_plain() {
        for (path, mime, found) in [
            ("a/cat.PNG", None, ".PNG"),
            ("a.b/cat", Some("image/jpeg"), ".jpg"),
            ("cat.p/ng", None, ""),
            ("cat.", Some("image/webp"), ".webp"),
            ("cat.thisistoolong", None, ""),
        ] {
            assert_eq!(extension(path, mime), found, "{path}");
        }
    }
}
