//! Key pairs made for one test run, and tokens signed with them.

use std::sync::LazyLock;

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Signs tokens that are believed.
pub(crate) static ONE: LazyLock<Signer> = LazyLock::new(|| Signer::new("one"));
/// Signs tokens of a key that is not, or not yet, published.
pub(crate) static OTHER: LazyLock<Signer> = LazyLock::new(|| Signer::new("other"));

pub(crate) struct Signer {
    pub(crate) key_id: &'static str,
    pair: RsaKeyPair,
}

impl Signer {
    fn new(key_id: &'static str) -> Self {
        Self { key_id, pair: RsaKeyPair::generate(KeySize::Rsa2048).unwrap() }
    }

    /// A token with these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "RS256", "kid": self.key_id}), claims)
    }

    /// A token with this header and these claims, signed RS256 whatever the header says.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        format!("{message}.{}", encode(signature))
    }

    pub(crate) fn parts(token: &str) -> [String; 3] {
        let parts: Vec<String> = token.split('.').map(str::to_owned).collect();
        parts.try_into().unwrap()
    }
}

/// The document that publishes these keys.
pub(crate) fn key_set<'a>(signers: impl IntoIterator<Item = &'a Signer>) -> Value {
    let keys: Vec<Value> = signers.into_iter().map(published).collect();
    json!({ "keys": keys })
}

fn published(signer: &Signer) -> Value {
    let key = signer.pair.public_key();
    json!({
        "kty": "RSA",
        "kid": signer.key_id,
        "n": encode(key.modulus().big_endian_without_leading_zero()),
        "e": encode(key.exponent().big_endian_without_leading_zero()),
    })
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}
