//! Addresses to which anybody who has them may upload one file for a while.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

use crate::auth::{random_token, same};

/// How long an address is good, in seconds.
pub(crate) const LIFETIME_SECONDS: u64 = 3600;

/// Most addresses that are good at a time.
const MAX_GRANTS: usize = 10_000;

/// Why an upload is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It was never granted, or not so.
    Unknown,
    /// Its time is over.
    Expired,
    /// Another content type was signed.
    ContentType,
}

#[derive(Debug)]
struct Grant {
    signature: String,
    expires: u64,
    content_type: Option<String>,
}

/// One address, as it is handed out.
#[derive(Debug)]
pub(crate) struct Granted {
    /// Where the file will be.
    pub(crate) key: String,
    /// In seconds since the Unix epoch.
    pub(crate) expires: u64,
    pub(crate) signature: String,
}

/// The addresses that are good. They are random and kept here, so there is no key that could leak, and a restart ends
/// them all.
#[derive(Debug, Default)]
pub(crate) struct Grants(Mutex<HashMap<String, Grant>>);

impl Grants {
    /// Hands out an address at `now`, in seconds since the Unix epoch; `None`: too many are out.
    pub(crate) fn issue(&self, name: &str, content_type: Option<String>, now: u64) -> Option<Granted> {
        let mut grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grants.len() >= MAX_GRANTS {
            grants.retain(|_, grant| grant.expires > now);
        }
        if grants.len() >= MAX_GRANTS {
            return None;
        }
        let granted = Granted {
            key: format!("{}/{name}", Uuid::new_v4()),
            expires: now + LIFETIME_SECONDS,
            signature: random_token(),
        };
        let grant = Grant { signature: granted.signature.clone(), expires: granted.expires, content_type };
        grants.insert(granted.key.clone(), grant);
        Some(granted)
    }

    /// Whether an upload at `now` is what was granted.
    pub(crate) fn check(
        &self,
        key: &str,
        expires: u64,
        signature: &str,
        content_type: Option<&str>,
        now: u64,
    ) -> Result<(), Denied> {
        let grants = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let grant = grants.get(key).ok_or(Denied::Unknown)?;
        if grant.expires != expires || !same(&grant.signature, signature) {
            Err(Denied::Unknown)
        } else if grant.expires <= now {
            Err(Denied::Expired)
        } else if grant.content_type.is_some() && grant.content_type.as_deref() != content_type {
            Err(Denied::ContentType)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_granted_may_be_uploaded_and_only_in_time() {
        let grants = Grants::default();
        let png = Some("image/png");
        let granted = grants.issue("x.png", png.map(str::to_owned), 100).unwrap();
        let check = |signature: &str, content_type, now| {
            grants.check(&granted.key, granted.expires, signature, content_type, now)
        };
        assert_eq!(check(&granted.signature, png, 101), Ok(()));
        assert_eq!(check("guess", png, 101), Err(Denied::Unknown));
        assert_eq!(check(&granted.signature, None, 101), Err(Denied::ContentType));
        assert_eq!(check(&granted.signature, Some("image/png; q=1"), 101), Err(Denied::ContentType));
        assert_eq!(check(&granted.signature, png, 100 + LIFETIME_SECONDS), Err(Denied::Expired));
        let later = grants.check(&granted.key, granted.expires + 1, &granted.signature, png, 101);
        assert_eq!(later, Err(Denied::Unknown));
    }

    #[test]
    fn old_addresses_make_room() {
        let grants = Grants::default();
        for _ in 0..MAX_GRANTS {
            grants.issue("x", None, 0).unwrap();
        }
        assert!(grants.issue("x", None, 1).is_none());
        assert!(grants.issue("x", None, LIFETIME_SECONDS).is_some());
    }
}
