//! Files that look like secrets: an archive and an image go to places that must not have them.

use std::fmt;

use super::archive::Entry;

/// Where in a file a secret is looked for, in bytes: keys and settings are short.
const SEARCHED: usize = 1 << 20;

/// Names that secrets have, in lower case.
const NAMES: [&str; 14] = [
    ".envrc",
    ".git-credentials",
    ".netrc",
    ".npmrc",
    ".pgpass",
    ".pypirc",
    "_netrc",
    "credentials",
    "credentials.json",
    "credentials.toml",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "id_rsa",
];

/// Ends of paths that secrets have whose names alone say nothing.
const PATHS: [&str; 2] = [".docker/config.json", ".kube/config"];

/// Ends of names that secrets have.
const ENDS: [&str; 5] = [".key", ".p12", ".pfx", ".jks", ".keystore"];

/// Examples of `.env` that are there to be copied.
const EXAMPLES: [&str; 4] = [".example", ".sample", ".template", ".dist"];

/// Beginnings of tokens, the least length of what follows, and what is in that beside letters and digits.
const TOKENS: [(&str, usize, &str); 16] = [
    ("AKIA", 16, ""),
    ("ASIA", 16, ""),
    ("gho_", 36, ""),
    ("ghp_", 36, ""),
    ("ghs_", 36, ""),
    ("ghu_", 36, ""),
    ("github_pat_", 36, "_"),
    ("glpat-", 20, "-_"),
    ("hf_", 30, ""),
    ("npm_", 36, ""),
    ("pypi-", 40, "-_"),
    ("rk_live_", 20, ""),
    ("sk_live_", 20, ""),
    ("xapp-", 20, "-"),
    ("xoxb-", 20, "-"),
    ("xoxp-", 20, "-"),
];

/// A file that looks like a secret.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suspect<'a> {
    pub(super) path: &'a str,
    why: &'static str,
}

impl fmt::Display for Suspect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} looks like a secret: {}", self.path, self.why)
    }
}

/// The files that look like secrets.
pub(super) fn among(entries: &[Entry]) -> Vec<Suspect<'_>> {
    let suspects = entries.iter().filter_map(|entry| {
        let why = by_name(&entry.path).or_else(|| by_content(entry.data()))?;
        Some(Suspect { path: &entry.path, why })
    });
    suspects.collect()
}

fn by_name(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let is_example = EXAMPLES.iter().any(|end| name.ends_with(end));
    if (name == ".env" || name.starts_with(".env.")) && !is_example {
        return Some("settings of one machine");
    }
    let path = format!("/{path}").to_ascii_lowercase();
    let known = NAMES.contains(&name.as_str())
        || ENDS.iter().any(|end| name.ends_with(end))
        || PATHS.iter().any(|end| path.strip_suffix(end).is_some_and(|before| before.ends_with('/')));
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
    let has = |(start, least, others): &(&str, usize, &str)| {
        let belongs = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
        let mut found = text.match_indices(start).filter(|(at, _)| begins_a_word(&text, *at));
        found.any(|(at, _)| text[at + start.len()..].chars().take_while(|c| belongs(*c)).count() >= *least)
    };
    if TOKENS.iter().any(has) || text.lines().any(has_login) {
        return Some("there is a token in it");
    }
    None
}

fn begins_a_word(text: &str, at: usize) -> bool {
    !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// A line of an `.npmrc` with a token, or of a `.netrc`, whatever the file is called. `${…}` names a variable.
fn has_login(line: &str) -> bool {
    let of_npm = line
        .split_once("_authToken=")
        .is_some_and(|(_, token)| token.len() >= 8 && token.starts_with(|c: char| c.is_ascii_alphanumeric()));
    let words: Vec<&str> = line.split_whitespace().collect();
    let of_netrc =
        words.windows(6).any(|words| (words[0], words[2], words[4]) == ("machine", "login", "password"));
    of_npm || of_netrc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> bool {
        !among(&[Entry::text(path, text.to_owned())]).is_empty()
    }

    #[test]
    fn names_tell_secrets() {
        for path in [
            ".env",
            ".envrc",
            ".git-credentials",
            ".pgpass",
            "Credentials.json",
            "a/.env.local",
            "deploy/id_rsa",
            "home/.docker/config.json",
            "home/.kube/config",
            "tls/server.key",
        ] {
            assert!(found(path, ""), "{path}");
        }
        for path in [".env.example", "src/env.rs", "src/key.rs", "cert.pem", "monkey", "config.json"] {
            assert!(!found(path, ""), "{path}");
        }
    }

    #[test]
    fn contents_tell_secrets() {
        // Put together here, so that nobody who looks for secrets finds these.
        let token = ["h", "f_", &"a1".repeat(17)].concat();
        let key = ["-----BEGIN RSA PRIVATE", " KEY-----\nMII"].concat();
        assert!(found("a.txt", &format!("let t = \"{token}\";")) && found("a.pem", &key));
        for (start, rest) in [
            ("xox", "b-123456789012-1234567890123-AbCdEf"),
            ("gl", "pat-a_b-c1234567890123456"),
            ("np", "m_abcdefghijklmnopqrstuvwxyz0123456789"),
            ("py", "pi-AgEIcHlwaS5vcmcCJDQ0-abcdef_ghijklmnopqrstuvwxyz"),
            ("//host.example/:_authT", "oken=0123456789abcdef"),
            ("machine host.example login me pass", "word 0123456789"),
        ] {
            assert!(found("a.txt", &format!("x {start}{rest}\n")), "{start}{rest}");
        }
        assert!(!found(
            "a.txt",
            "xox-b a-glpat-nothing _authToken=${NPM_TOKEN} the machine's password is password"
        ));
        assert!(!found("a.txt", "hf_short") && !found("a.txt", &format!("x{token}")));
        assert!(!found("a.pem", "-----BEGIN CERTIFICATE-----\nMII"));
    }

    #[test]
    fn a_suspect_is_named_with_the_reason() {
        let entries = [Entry::text("a", String::new()), Entry::text("b/.env", String::new())];
        let told: Vec<String> = among(&entries).iter().map(ToString::to_string).collect();
        assert_eq!(told, ["b/.env looks like a secret: settings of one machine"]);
    }
}
