//! Taking secrets, addresses and paths out of text that user code or another host wrote.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// Longest text kept, in characters: the original worker's bound (contract §5).
const MAX_CHARS: usize = 500;

type Rule = (Regex, &'static str);

fn rules<const N: usize>(rules: [(&str, &'static str); N]) -> [Rule; N] {
    rules.map(|(pattern, replacement)| {
        (Regex::new(pattern).expect("the patterns are constant and tested"), replacement)
    })
}

/// Credentials and URLs, whose query may sign them. What is quoted goes first, while its name is there; URLs go before tokens: what is
/// left of one that began like a token would be none. All go before the paths that they contain.
static SECRETS: LazyLock<[Rule; 4]> = LazyLock::new(|| {
    rules([
        // As JSON and Rust's `Debug` write it, perhaps within a text of the same kind.
        (
            r"(?i)\b([\w-]*(?:token|secret|password|passwd|api[_-]?key|signature|credential)[\w-]*\\?[\x22']?\s*[=:]\s*(?:Some\()?\\?[\x22'])(?:[^\x22'\\]|\\[^\x22'])+",
            "$1<redacted>",
        ),
        (r"(?i)\b[a-z][a-z0-9+.-]*://[^\s\x22'<>]+", "<url>"),
        // Written twice where the word is part of a token that is sent with it once more.
        (r"(?i)\b(?:bearer\s+)+[\w.~+/=-]+", "Bearer <redacted>"),
        (
            r"(?i)\b((?:[\w-]*(?:token|secret|password|passwd|api[_-]?key|signature|credential)[\w-]*|sig)\s*[=:]\s*)[^\s&,;\x22']+",
            "$1<redacted>",
        ),
    ])
});

/// Places on this machine.
static PATHS: LazyLock<[Rule; 2]> = LazyLock::new(|| {
    rules([
        (r"(?i)\b[a-z]:\\[^\s\x22'<>|]*|\\\\[\w.$-]+\\[^\s\x22'<>|]*", "<path>"),
        (r"(^|[^\w/.)\]}<])(?:~|\.{1,2})?/[\w.@~+-]+(?:/[\w.@~+-]*)*", "$1<path>"),
    ])
});

/// What a line of a log may hold of credentials: where it would be a pity to lose more. A value ends where JSON's text does, so that
/// a line of JSON stays one.
static IN_LINES: LazyLock<[Rule; 6]> = LazyLock::new(|| {
    rules([
        (r"(?i)\bbearer\s+[\w.~+/=-]{8,}", "Bearer <redacted>"),
        (
            r"(?i)([?&][\w.-]*(?:token|secret|sig|signature|password|credential|key)[\w.-]*=)[^&\s\x22'\\<>]+",
            "$1<redacted>",
        ),
        (
            r"(?i)\b([\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|(?:auth|access)[_-]?token)=)[^\s&,;\x22'\\<]+",
            "$1<redacted>",
        ),
        (
            r"(?i)\b([\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|(?:auth|access)[_-]?token)[\w-]*\\?[\x22']?\s*[=:]\s*(?:Some\()?\\?[\x22'])(?:[^\x22'\\]|\\[^\x22'])+",
            "$1<redacted>",
        ),
        (r"(?i)\b(authorization\\?[\x22']?\s*[=:]\s*\\?[\x22']?basic\s+)[^\s\x22'\\]+", "$1<redacted>"),
        (r"(://[^\s/:@\x22'\\]*:)[^\s/@\x22'\\]+@", "$1<redacted>@"),
    ])
});

/// A line of a log without bearer tokens, signed queries, passwords of URLs and `password=` values, whoever wrote it: the last resort
/// behind types that do not show themselves.
///
/// ```
/// use gen_worker_core::hide_credentials;
///
/// let line = r#"{"message":"GET https://h/x?a=1&X-Amz-Signature=ab12","n":1}"#;
/// assert_eq!(hide_credentials(line), r#"{"message":"GET https://h/x?a=1&X-Amz-Signature=<redacted>","n":1}"#);
/// ```
pub fn hide_credentials(line: &str) -> Cow<'_, str> {
    if may_hold_one(line) { replace(line, IN_LINES.iter()) } else { Cow::Borrowed(line) }
}

/// Most lines hold no word of the rules, whose automata take megabytes and milliseconds to make: a worker that has nothing to hide
/// makes none.
fn may_hold_one(line: &str) -> bool {
    const WORDS: [&str; 8] =
        ["bearer", "basic", "password", "passwd", "secret", "credential", "key", "token"];
    let line = line.to_ascii_lowercase();
    WORDS.iter().any(|word| line.contains(word))
        || line.contains('=') && line.contains("sig")
        || line.contains("://") && line.contains('@')
}

/// The text without bearer tokens, `token=` values, URLs and file paths, trimmed and cut to 500 characters: for callers.
///
/// ```
/// use gen_worker_core::redact;
///
/// assert_eq!(redact("Bearer abc.def https://a.b/c /home/u/t.txt"), "Bearer <redacted> <url> <path>");
/// assert_eq!(redact("use a ratio of 1/2"), "use a ratio of 1/2");
/// ```
pub fn redact(text: &str) -> String {
    let redacted = replace(text.trim(), SECRETS.iter().chain(PATHS.iter()));
    match redacted.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => redacted[..end].to_owned(),
        None => redacted.into_owned(),
    }
}

/// The text without bearer tokens, `token=` values and URLs: for the worker's own log, where paths help.
pub fn hide_secrets(text: &str) -> Cow<'_, str> {
    replace(text, SECRETS.iter())
}

/// Whether anything was taken out of this text; a secret in the midst of it is, whatever stands around.
///
/// # Panics
/// It is not.
#[cfg(any(test, feature = "testing"))]
pub fn check(text: &str) -> bool {
    const SECRET: &str = "hunter2";
    let redacted = redact(text);
    assert!(redacted.chars().count() <= MAX_CHARS, "{redacted}");
    let middle = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
    let (before, after) = text.split_at(middle);
    for form in [
        "Bearer hunter2",
        "token=hunter2",
        "https://user:hunter2@host/hunter2?sig=hunter2",
        r#"{"password":"hunter2"}"#,
        r#"api_key: Some("hunter2")"#,
    ] {
        let told = format!("{before} {form} {after}");
        if !text.contains(SECRET) {
            assert!(!redact(&told).contains(SECRET), "{told}");
            assert!(!hide_secrets(&told).contains(SECRET), "{told}");
        }
    }
    redacted != text
}

fn replace<'t, 'r>(text: &'t str, rules: impl Iterator<Item = &'r Rule>) -> Cow<'t, str> {
    let mut redacted = Cow::Borrowed(text);
    for (pattern, replacement) in rules {
        if let Cow::Owned(replaced) = pattern.replace_all(&redacted, *replacement) {
            redacted = Cow::Owned(replaced);
        }
    }
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the fuzzer found or was given to begin with.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/redacted");
        let texts =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let redacted = texts.filter(|text| super::check(&String::from_utf8_lossy(text))).count();
        assert!(redacted > 1, "{redacted}");
    }

    #[test]
    fn hides_what_must_not_leave() {
        for (text, redacted) in [
            ("Authorization: bearer abc.def-g", "Authorization: Bearer <redacted>"),
            ("Bearer Bearer abc.def", "Bearer <redacted>"),
            ("no Bearer https://me:abc@host/x", "no Bearer <url>"),
            ("token=abcd failed", "token=<redacted> failed"),
            (r#"{"password":"a b","n":1}"#, r#"{"password":"<redacted>","n":1}"#),
            (r#"Login { api_key: Some("ab"), n: 1 }"#, r#"Login { api_key: <redacted>"<redacted>"), n: 1 }"#),
            (r#"api_key="ab" n=1"#, r#"api_key="<redacted>" n=1"#),
            ("AWS_SECRET_ACCESS_KEY: wJalr", "AWS_SECRET_ACCESS_KEY: <redacted>"),
            ("?X-Amz-Signature=ab12&x=1", "?X-Amz-Signature=<redacted>&x=1"),
            ("s3://bucket/key is gone", "<url> is gone"),
            (r"open C:\Users\me\x.png", "open <path>"),
            ("open '/var/lib/x y'", "open '<path> y'"),
            ("../up/one", "<path>"),
        ] {
            assert_eq!(redact(text), redacted, "{text}");
        }
    }

    #[test]
    fn a_line_loses_its_credentials_and_nothing_else() {
        for (line, left) in [
            ("Authorization: Bearer abcdef.ghi-j", "Authorization: Bearer <redacted>"),
            ("calling with api_key=hunter2, twice", "calling with api_key=<redacted>, twice"),
            (r#"{"m":"password=hunter2\"x","n":1}"#, r#"{"m":"password=<redacted>\"x","n":1}"#),
            ("http://u:hunter2@h/x", "http://u:<redacted>@h/x"),
            ("redis://:hunter2@h", "redis://:<redacted>@h"),
            ("Authorization: Basic dTpw", "Authorization: Basic <redacted>"),
            (r#"{"password":"hunter2","n":1}"#, r#"{"password":"<redacted>","n":1}"#),
            (r#"{"m":"{\"password\":\"hun ter2\"}"}"#, r#"{"m":"{\"password\":\"<redacted>\"}"}"#),
            (r#"api_key: Some("hunter2")"#, r#"api_key: Some("<redacted>")"#),
            ("https://h/x?sig=a%2Fb&n=1", "https://h/x?sig=<redacted>&n=1"),
        ] {
            assert_eq!(hide_credentials(line), left);
        }
        for line in [
            r#"{"address":"http://127.0.0.1:9090/","run_id":"1","token":"refused"}"#,
            "the bearer of a token: expired, key=3",
            "job{run_id=\"a?b\"}: GET https://hub.example/m?tag=latest",
        ] {
            assert_eq!(hide_credentials(line), line);
        }
    }

    #[test]
    fn leaves_ordinary_text_alone() {
        for text in ["1/2", "and/or", "steps must be <= 50", "image/png", "a: b", "12:30"] {
            assert_eq!(redact(text), text);
        }
    }

    #[test]
    fn cuts_long_text_between_characters() {
        assert_eq!(redact(&"é".repeat(600)).chars().count(), 500);
    }
}
