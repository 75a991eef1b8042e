//! Token, keys, policy and time in; claims or a refusal out.

use std::time::{Duration, SystemTime};

use jsonwebtoken::{
    Algorithm, Header, Validation, dangerous::insecure_decode, decode, decode_header, errors::ErrorKind,
};
use serde::Deserialize;
use serde_json::Value;

use crate::{error::AuthError, jwks::KeySet};

/// How far this machine's clock and the issuer's may be apart.
pub(crate) const LEEWAY: Duration = Duration::from_secs(30);

/// What a token must say; `None`: it may say anything or nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy {
    pub(crate) issuer: Option<String>,
    pub(crate) audience: Option<String>,
}

/// What a token says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// When it expires; `None`: never.
    pub(crate) expires_at: Option<SystemTime>,
}

#[derive(Deserialize)]
struct Claimed {
    exp: Option<f64>,
    nbf: Option<f64>,
    iss: Option<Value>,
    aud: Option<Value>,
}

/// The id of the key that a token says it was signed with, before anything about the token is believed.
pub(crate) fn key_id(token: &str) -> Result<String, AuthError> {
    let header: Header = decode_header(token).map_err(|error| refusal_of_header(error.kind()))?;
    if header.alg != Algorithm::RS256 {
        return Err(AuthError::Algorithm);
    }
    // An extension marked critical must be understood (RFC 7515 §4.1.11), and none is.
    if header.crit.is_some() {
        return Err(AuthError::Malformed);
    }
    header.kid.ok_or(AuthError::Malformed)
}

/// Verifies a token: RS256 by a known key, valid at `now`, and by the policy's issuer for its audience.
pub(crate) fn verify(
    token: &str,
    keys: &KeySet,
    policy: &Policy,
    now: SystemTime,
) -> Result<Claims, AuthError> {
    let key = keys.get(&key_id(token)?).ok_or(AuthError::UnknownKey)?;
    let claimed =
        decode::<Claimed>(token, key, &signature_only()).map_err(|error| refusal(error.kind()))?.claims;
    check_times(&claimed, now)?;
    check_policy(&claimed, policy)?;
    Ok(Claims::of(&claimed))
}

/// What a token says of itself, which nothing vouches for. Nothing, if it is no JSON Web Token.
pub(crate) fn unverified(token: &str) -> Claims {
    insecure_decode::<Claimed>(token).map_or_else(|_| Claims::default(), |data| Claims::of(&data.claims))
}

impl Claims {
    fn of(claimed: &Claimed) -> Self {
        let expires_at = claimed.exp.and_then(|exp| Duration::try_from_secs_f64(exp).ok());
        Self { expires_at: expires_at.and_then(|exp| SystemTime::UNIX_EPOCH.checked_add(exp)) }
    }
}

/// The library reads the clock itself, so the claims are checked here instead.
fn signature_only() -> Validation {
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims.clear();
    validation
}

fn check_times(claimed: &Claimed, now: SystemTime) -> Result<(), AuthError> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = LEEWAY.as_secs_f64();
    if claimed.exp.is_some_and(|exp| now >= exp + leeway) {
        return Err(AuthError::Expired);
    }
    if claimed.nbf.is_some_and(|nbf| now + leeway < nbf) {
        return Err(AuthError::NotYetValid);
    }
    Ok(())
}

fn check_policy(claimed: &Claimed, policy: &Policy) -> Result<(), AuthError> {
    if let Some(issuer) = &policy.issuer
        && !claimed.iss.as_ref().is_some_and(|iss| iss == issuer)
    {
        return Err(AuthError::WrongIssuer);
    }
    if let Some(audience) = &policy.audience
        && !claimed.aud.as_ref().is_some_and(|aud| names(aud, audience))
    {
        return Err(AuthError::WrongAudience);
    }
    Ok(())
}

fn names(aud: &Value, audience: &str) -> bool {
    match aud {
        Value::Array(all) => all.iter().any(|one| one == audience),
        one => one == audience,
    }
}

/// A header's JSON does not parse when it names an algorithm that the library does not know, such as `none`.
fn refusal_of_header(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::Json(_) => AuthError::Algorithm,
        _ => AuthError::Malformed,
    }
}

fn refusal(kind: &ErrorKind) -> AuthError {
    match kind {
        ErrorKind::InvalidSignature => AuthError::Signature,
        ErrorKind::InvalidAlgorithm => AuthError::Algorithm,
        _ => AuthError::Malformed,
    }
}

/// Whether these bytes are a key set, a line feed and a token that the set verifies: which takes the private key, so never.
///
/// # Panics
/// The token is verified, or is refused otherwise than unread.
#[cfg(any(test, feature = "fuzzing"))]
pub fn check(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (keys, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let token = String::from_utf8_lossy(token);
    let _ = (key_id(&token), unverified(&token));
    let Ok(keys) = serde_json::from_slice::<KeySet>(keys) else { return false };
    verify(&token, &keys, &Policy::default(), SystemTime::UNIX_EPOCH).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{ONE, OTHER, Signer, key_set};

    const NOW: u64 = 1_700_000_000;

    /// What the fuzzer found or was given to begin with: of one key the other half is lost, but a token that it signed.
    #[test]
    fn the_corpus_of_the_fuzzer_holds() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/keys_and_token");
        let parts =
            std::fs::read_dir(corpus).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        assert_eq!(parts.filter(|bytes| super::check(bytes)).count(), 1);
    }

    fn check(token: &str, policy: &Policy) -> Result<Claims, AuthError> {
        let keys = serde_json::from_value(key_set([&*ONE])).unwrap();
        verify(token, &keys, policy, SystemTime::UNIX_EPOCH + Duration::from_secs(NOW))
    }

    #[test]
    fn without_verifying_only_the_expiry_is_read() {
        let token = OTHER.token(&json!({"exp": NOW, "iss": 7}));
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        assert_eq!(unverified(&token).expires_at, Some(expires_at));
        for text in ["", "opaque", "a.b.c", &ONE.token(&json!({}))] {
            assert_eq!(unverified(text), Claims::default());
        }
    }

    fn check_claims(claims: Value) -> Result<Claims, AuthError> {
        check(&ONE.token(&claims), &Policy::default())
    }

    fn strict() -> Policy {
        Policy { issuer: Some("scheduler".into()), audience: Some("worker".into()) }
    }

    macro_rules! refuses {
        ($result:expr, $variant:ident) => {
            let result = $result;
            assert!(matches!(result, Err(AuthError::$variant)), "{result:?}");
        };
    }

    #[test]
    fn a_token_without_claims_is_valid_for_ever() {
        assert_eq!(check_claims(json!({})).unwrap(), Claims { expires_at: None });
    }

    #[test]
    fn times_are_checked_with_leeway() {
        let valid = check_claims(json!({"exp": NOW - 29, "nbf": NOW + 30})).unwrap();
        let expires_at = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW - 29);
        assert_eq!(valid.expires_at, Some(expires_at));
        assert!(check_claims(json!({"exp": NOW as f64 + 0.5})).is_ok());
        refuses!(check_claims(json!({"exp": NOW - 30})), Expired);
        refuses!(check_claims(json!({"exp": -1})), Expired);
        refuses!(check_claims(json!({"nbf": NOW + 31})), NotYetValid);
        refuses!(check_claims(json!({"exp": "tomorrow"})), Malformed);
    }

    #[test]
    fn issuer_and_audience_are_required_when_set() {
        for aud in [json!("worker"), json!(["other", "worker"])] {
            let token = ONE.token(&json!({"iss": "scheduler", "aud": aud}));
            assert!(check(&token, &strict()).is_ok());
        }
        for iss in [json!(null), json!("else"), json!(["scheduler"])] {
            let token = ONE.token(&json!({"iss": iss, "aud": "worker"}));
            refuses!(check(&token, &strict()), WrongIssuer);
        }
        for aud in [json!(null), json!("workers"), json!(["other"]), json!([])] {
            let token = ONE.token(&json!({"iss": "scheduler", "aud": aud}));
            refuses!(check(&token, &strict()), WrongAudience);
        }
        assert!(check_claims(json!({"iss": "else", "aud": "else"})).is_ok());
    }

    #[test]
    fn only_rs256_is_believed() {
        for alg in ["HS256", "PS256", "RS512", "none", ""] {
            let token = ONE.sign(&json!({"alg": alg, "kid": ONE.key_id}), &json!({}));
            refuses!(check(&token, &Policy::default()), Algorithm);
        }
        let token = ONE.sign(&json!({"kid": ONE.key_id}), &json!({}));
        refuses!(check(&token, &Policy::default()), Algorithm);
    }

    #[test]
    fn the_key_must_be_known_and_must_have_signed() {
        refuses!(check(&OTHER.token(&json!({})), &Policy::default()), UnknownKey);
        let forged = OTHER.sign(&json!({"alg": "RS256", "kid": ONE.key_id}), &json!({}));
        refuses!(check(&forged, &Policy::default()), Signature);
        let nameless = ONE.sign(&json!({"alg": "RS256"}), &json!({}));
        refuses!(check(&nameless, &Policy::default()), Malformed);
        let critical = json!({"alg": "RS256", "kid": ONE.key_id, "crit": ["b64"], "b64": false});
        refuses!(check(&ONE.sign(&critical, &json!({})), &Policy::default()), Malformed);
    }

    #[test]
    fn a_changed_token_is_refused() {
        let [header, _, signature] = Signer::parts(&ONE.token(&json!({"exp": NOW})));
        let [_, claims, _] = Signer::parts(&ONE.token(&json!({"exp": NOW + 1})));
        let mixed = format!("{header}.{claims}.{signature}");
        refuses!(check(&mixed, &Policy::default()), Signature);
        for text in ["", "opaque", "a.b.c", "a.b.c.d"] {
            refuses!(check(text, &Policy::default()), Malformed);
        }
    }
}
