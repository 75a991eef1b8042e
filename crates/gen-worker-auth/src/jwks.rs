//! A published key set document, turned into keys by id.

use std::collections::BTreeMap;

use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, CommonParameters, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

/// The keys of one document that can verify RS256.
///
/// Entries of another kind, for another use or without an id are left out: a publisher may add what this worker does
/// not know.
#[derive(Debug, Deserialize)]
#[serde(from = "Document")]
pub(crate) struct KeySet(BTreeMap<String, DecodingKey>);

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// The key of this id.
    pub(crate) fn get(&self, key_id: &str) -> Option<&DecodingKey> {
        self.0.get(key_id)
    }
}

impl From<Document> for KeySet {
    fn from(document: Document) -> Self {
        Self(document.keys.into_iter().filter_map(usable).collect())
    }
}

fn usable(entry: Value) -> Option<(String, DecodingKey)> {
    let Jwk { common, algorithm } = serde_json::from_value(entry).ok()?;
    if !verifies_rs256(&common) {
        return None;
    }
    let AlgorithmParameters::RSA(rsa) = algorithm else {
        return None;
    };
    let key = DecodingKey::from_rsa_components(&rsa.n, &rsa.e).ok()?;
    Some((common.key_id?, key))
}

/// What the publisher says of the key, if it says anything.
fn verifies_rs256(key: &CommonParameters) -> bool {
    matches!(key.public_key_use, None | Some(PublicKeyUse::Signature))
        && matches!(key.key_algorithm, None | Some(KeyAlgorithm::RS256))
        && key.key_operations.as_ref().is_none_or(|allowed| allowed.contains(&KeyOperations::Verify))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keeps_rsa_keys_that_sign_and_have_an_id() {
        let document = json!({"keys": [
            {"kty": "RSA", "kid": "good", "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "said", "use": "sig", "alg": "RS256", "n": "AQAB", "e": "AQAB", "x5t": "?"},
            {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "verifies", "key_ops": ["verify"], "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "encrypts", "use": "enc", "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "wraps", "key_ops": ["encrypt", "wrapKey"], "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "pss", "alg": "PS256", "n": "AQAB", "e": "AQAB"},
            {"kty": "RSA", "kid": "broken", "n": "not base64!", "e": "AQAB"},
            {"kty": "oct", "kid": "secret", "k": "AQAB"},
            {"kty": "EC", "kid": "curve", "crv": "P-256", "x": "AQAB", "y": "AQAB"},
            {"kty": "from the future", "kid": "new"},
            7,
        ]});
        let keys = serde_json::from_value::<KeySet>(document).unwrap();
        assert_eq!(keys.0.keys().collect::<Vec<_>>(), ["good", "said", "verifies"]);
    }

    #[test]
    fn another_document_is_no_key_set() {
        assert!(serde_json::from_str::<KeySet>("{}").is_err());
        assert!(serde_json::from_str::<KeySet>("[]").is_err());
    }
}
