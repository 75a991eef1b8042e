//! Tokens: made, carried and compared; and the two clocks they and the runs live by.

use std::time::{SystemTime, UNIX_EPOCH};

use gen_worker_core::{Algorithm, Digest, Secret, TenantId};
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use uuid::Uuid;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// For waiting.
    pub(crate) at: Instant,
    /// For showing: milliseconds since the Unix epoch.
    pub(crate) unix_ms: u64,
}

impl Now {
    pub(crate) fn read() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Self { at: Instant::now(), unix_ms: since_epoch.map_or(0, |d| d.as_millis() as u64) }
    }
}

/// A text that nobody can guess: 244 random bits.
pub(crate) fn random_token() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

/// The token in an `Authorization: Bearer` value.
pub(crate) fn bearer(authorization: Option<&str>) -> Option<&str> {
    let (scheme, token) = authorization?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a caller who sent `given` may enter; everybody may where nothing is `wanted`.
pub(crate) fn admits(wanted: Option<&Secret<String>>, given: Option<&str>) -> bool {
    match (wanted, given) {
        (None, _) => true,
        (Some(wanted), Some(given)) => same(wanted.expose(), given),
        (Some(_), None) => false,
    }
}

/// Compares digests, and those in constant time, so that the time it takes says nothing about the texts.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let digest = |text: &str| Digest::of(Algorithm::Sha256, text.as_bytes());
    digest(a).hex().as_bytes().ct_eq(digest(b).hex().as_bytes()).into()
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Caller {
    /// Whoever runs the orchestrator: all runs and files are there, and a request says whose it is.
    Operator,
    /// A tenant: only its own runs and files are there.
    Tenant(String),
}

impl Caller {
    /// Whose it is what is asked for: the tenant's own, or whose the operator says. `None`: another tenant was named.
    pub(crate) fn acts_for(&self, named: Option<String>) -> Option<Option<String>> {
        match self {
            Self::Operator => Some(named),
            Self::Tenant(own) if named.as_ref().is_none_or(|named| named == own) => Some(Some(own.clone())),
            Self::Tenant(_) => None,
        }
    }

    /// The tenant that a caller is; `None`: the operator.
    pub(crate) fn tenant(&self) -> Option<&str> {
        match self {
            Self::Operator => None,
            Self::Tenant(own) => Some(own),
        }
    }

    /// Whether what belongs to this tenant is there for the caller.
    pub(crate) fn sees(&self, tenant_id: Option<&str>) -> bool {
        match self {
            Self::Operator => true,
            Self::Tenant(own) => tenant_id == Some(own),
        }
    }
}

/// Who may call.
#[derive(Debug, Clone)]
pub(crate) struct Callers {
    operator: Option<Secret<String>>,
    tenants: Vec<(TenantId, Secret<String>)>,
}

impl Callers {
    pub(crate) fn new(operator: Option<Secret<String>>, tenants: Vec<(TenantId, Secret<String>)>) -> Self {
        Self { operator, tenants }
    }

    /// Whether nobody is asked for a token.
    pub(crate) fn are_all(&self) -> bool {
        self.operator.is_none() && self.tenants.is_empty()
    }

    /// Who sent this token; `None`: nobody who may call. Each token is compared, whichever it is.
    pub(crate) fn identify(&self, sent: Option<&str>) -> Option<Caller> {
        if self.are_all() {
            return Some(Caller::Operator);
        }
        let sent = sent?;
        let operator = self.operator.iter().map(|token| (Caller::Operator, token));
        let tenants =
            self.tenants.iter().map(|(tenant, token)| (Caller::Tenant(tenant.as_str().to_owned()), token));
        operator.chain(tenants).fold(
            None,
            |found, (caller, token)| {
                if same(token.expose(), sent) { Some(caller) } else { found }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_bearer_enters() {
        let wanted = Secret::from("t");
        assert!(admits(Some(&wanted), bearer(Some("bearer t"))));
        for wrong in [None, Some("Bearer x"), Some("Basic t"), Some("t")] {
            assert!(!admits(Some(&wanted), bearer(wrong)), "{wrong:?}");
        }
        assert!(admits(None, None));
    }

    #[test]
    fn a_token_says_who_calls() {
        let tenant = |name, token: &str| (TenantId::parse(name).unwrap(), Secret::from(token));
        let callers =
            Callers::new(Some("o".into()), vec![tenant("a", "1"), tenant("b", "2"), tenant("b", "3")]);
        let of = |name: &str| Some(Caller::Tenant(name.to_owned()));
        assert_eq!(callers.identify(Some("o")), Some(Caller::Operator));
        assert_eq!(["1", "2", "3"].map(|token| callers.identify(Some(token))), [of("a"), of("b"), of("b")]);
        assert_eq!([None, Some(""), Some("4")].map(|token| callers.identify(token)), [None, None, None]);
        let tenants_only = Callers::new(None, vec![tenant("a", "1")]);
        assert_eq!(tenants_only.identify(None), None);
        assert_eq!(Callers::new(None, Vec::new()).identify(None), Some(Caller::Operator));
    }

    #[test]
    fn a_tenant_acts_for_itself_only() {
        let (tenant, other) = (Caller::Tenant("a".to_owned()), || Some("b".to_owned()));
        assert_eq!(tenant.acts_for(None), Some(Some("a".to_owned())));
        assert_eq!(tenant.acts_for(other()), None);
        assert_eq!(Caller::Operator.acts_for(other()), Some(other()));
        assert!(tenant.sees(Some("a")) && !tenant.sees(Some("b")) && !tenant.sees(None));
    }
}
