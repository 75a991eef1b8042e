//! A NATS user, as `nsc` writes it in a file: a token that its account has signed, and the key that proves whose it is.

use std::{io, path::Path};

use async_nats::Auth;
use nkeys::KeyPair;

/// What a file says. It has no `Debug`: it is secret.
pub(super) struct Credentials {
    jwt: String,
    key: KeyPair,
}

impl Credentials {
    /// # Errors
    /// The file cannot be read, or holds something else. They do not say what is in it.
    pub(super) async fn read(path: &Path) -> io::Result<Self> {
        let text = tokio::fs::read_to_string(path).await?;
        let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let jwt = block(&text, "USER JWT").ok_or_else(|| wrong("there is no user JWT in it"))?;
        let key = block(&text, "NKEY SEED").and_then(|seed| KeyPair::from_seed(seed).ok());
        Ok(Self { jwt: jwt.to_owned(), key: key.ok_or_else(|| wrong("there is no seed of a key in it"))? })
    }

    /// The answer to a server that asks who connects.
    pub(super) fn answer(&self, nonce: &[u8]) -> io::Result<Auth> {
        let mut auth = Auth::new();
        auth.jwt = Some(self.jwt.clone());
        auth.signature = Some(self.key.sign(nonce).map_err(|_| io::Error::other("its key does not sign"))?);
        Ok(auth)
    }
}

/// The line after `-----BEGIN …-----`.
fn block<'a>(text: &'a str, what: &str) -> Option<&'a str> {
    let is_head = |line: &str| line.contains("BEGIN") && line.contains(what);
    let line = text.lines().skip_while(|line| !is_head(line)).nth(1)?.trim();
    (!line.is_empty()).then_some(line)
}
