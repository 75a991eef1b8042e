//! Files that look like secrets: an archive and an image go to places that must not have them.

use super::archive::Entry;

/// Where in a file a secret is looked for, in bytes: keys and settings are short.
const SEARCHED: usize = 1 << 20;

/// Names that secrets have, in lower case.
const NAMES: [&str; 10] = [
    ".netrc",
    ".npmrc",
    ".pypirc",
    "credentials",
    "credentials.json",
    "credentials.toml",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "id_rsa",
];

/// Ends of names that secrets have.
const ENDS: [&str; 5] = [".key", ".p12", ".pfx", ".jks", ".keystore"];

/// Examples of `.env` that are there to be copied.
const EXAMPLES: [&str; 4] = [".example", ".sample", ".template", ".dist"];

/// Beginnings of tokens, and the least number of letters and digits after them.
const TOKENS: [(&str, usize); 7] = [
    ("AKIA", 16),
    ("ghp_", 36),
    ("github_pat_", 36),
    ("glpat-", 20),
    ("hf_", 30),
    ("sk_live_", 20),
    ("xoxb-", 20),
];

/// What looks like a secret and was not allowed, a sentence for each file.
pub(super) fn among(entries: &[Entry], allowed: &[String]) -> Vec<String> {
    let is_allowed = |entry: &&Entry| !allowed.contains(&entry.path);
    let told = entries.iter().filter(is_allowed).filter_map(|entry| {
        let why = by_name(&entry.path).or_else(|| by_content(entry.data()))?;
        Some(format!("{} looks like a secret: {why}", entry.path))
    });
    told.collect()
}

fn by_name(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let is_example = EXAMPLES.iter().any(|end| name.ends_with(end));
    if (name == ".env" || name.starts_with(".env.")) && !is_example {
        return Some("settings of one machine");
    }
    let known = NAMES.contains(&name.as_str()) || ENDS.iter().any(|end| name.ends_with(end));
    known.then_some("its name is that of a key or a credential")
}

fn by_content(data: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(&data[..data.len().min(SEARCHED)]);
    let is_key = text
        .split("-----BEGIN ")
        .skip(1)
        .any(|after| after.split("-----").next().is_some_and(|name| name.ends_with("PRIVATE KEY")));
    if is_key {
        return Some("there is a private key in it");
    }
    let has = |(start, least): &(&str, usize)| {
        text.match_indices(start).any(|(at, _)| is_token(&text, at, start, *least))
    };
    TOKENS.iter().any(has).then_some("there is a token in it")
}

/// Whether a word begins there and goes on as a token does.
fn is_token(text: &str, at: usize, start: &str, least: usize) -> bool {
    let belongs = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let begins = !text[..at].ends_with(belongs);
    begins && text[at + start.len()..].chars().take_while(|c| belongs(*c)).count() >= least
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> bool {
        !among(&[Entry::text(path, text.to_owned())], &[]).is_empty()
    }

    #[test]
    fn names_tell_secrets() {
        for path in [".env", "a/.env.local", "deploy/id_rsa", "tls/server.key", "Credentials.json"] {
            assert!(found(path, ""), "{path}");
        }
        for path in [".env.example", "src/env.rs", "src/key.rs", "cert.pem", "monkey"] {
            assert!(!found(path, ""), "{path}");
        }
    }

    #[test]
    fn contents_tell_secrets() {
        // Put together here, so that nobody who looks for secrets finds these.
        let token = ["h", "f_", &"a1".repeat(17)].concat();
        let key = ["-----BEGIN RSA PRIVATE", " KEY-----\nMII"].concat();
        assert!(found("a.txt", &format!("let t = \"{token}\";")) && found("a.pem", &key));
        assert!(!found("a.txt", "hf_short") && !found("a.txt", &format!("x{token}")));
        assert!(!found("a.pem", "-----BEGIN CERTIFICATE-----\nMII"));
    }

    #[test]
    fn what_is_named_is_allowed() {
        let entries = [Entry::text(".env", String::new()), Entry::text("b/.env", String::new())];
        assert_eq!(
            among(&entries, &[".env".to_owned()]),
            ["b/.env looks like a secret: settings of one machine"]
        );
    }
}
