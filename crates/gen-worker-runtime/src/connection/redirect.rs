//! Which redirects are followed. The worker's token goes where a redirect points, so this decides who gets it.

use super::address::{Address, AddressError};

/// A host, or one port of it, that redirects may point to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectTarget {
    host: String,
    port: Option<u16>,
}

impl RedirectTarget {
    /// Parses `host` or `host:port`; without a port, every port of the host is meant.
    ///
    /// # Errors
    /// The host or port is none.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => {
                (host, Some(port.parse().map_err(|_| AddressError::HostPort)?))
            }
            _ => (text, None),
        };
        if !Address::is_host(host) {
            return Err(AddressError::HostPort);
        }
        Ok(Self { host: host.to_owned(), port })
    }

    fn covers(&self, target: &Address) -> bool {
        target.has_host(&self.host) && self.port.is_none_or(|port| port == target.port())
    }
}

/// Why a redirect is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Declined {
    #[error("no leader is known")]
    NoLeader,
    #[error("the leader's address cannot be read: {0}")]
    Unreadable(AddressError),
    #[error("{0} redirects in a row")]
    TooMany(u32),
    #[error("it leads from TLS to plaintext")]
    LowersTls,
    #[error("in plaintext, only the redirecting host and listed schedulers are followed")]
    UnknownHost,
    #[error("`SCHEDULER_REDIRECT_ALLOW` does not name it")]
    NotAllowed,
}

/// Whether a redirect between these two is followed. `allowed` empty: every target over TLS, and known hosts in plaintext.
pub(super) fn judge(
    from: &Address,
    target: &Address,
    listed: &[Address],
    allowed: &[RedirectTarget],
) -> Result<(), Declined> {
    if from.is_tls() && !target.is_tls() {
        return Err(Declined::LowersTls);
    }
    if !allowed.is_empty() {
        let named = listed.contains(target) || allowed.iter().any(|peer| peer.covers(target));
        return if named { Ok(()) } else { Err(Declined::NotAllowed) };
    }
    let known = || listed.iter().chain([from]).any(|address| address.has_host(target.host()));
    if target.is_tls() || known() { Ok(()) } else { Err(Declined::UnknownHost) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text, false).unwrap()
    }

    fn judged(from: &str, target: &str, allowed: &[&str]) -> Result<(), Declined> {
        let listed = [address("a:1"), address("grpcs://s:1")];
        let allowed: Vec<_> = allowed.iter().map(|text| RedirectTarget::parse(text).unwrap()).collect();
        judge(&address(from), &address(target), &listed, &allowed)
    }

    #[test]
    fn without_a_list_tls_and_known_hosts_are_followed() {
        assert_eq!(judged("a:1", "a:2", &[]), Ok(()));
        assert_eq!(judged("a:1", "A:2", &[]), Ok(()));
        assert_eq!(judged("b:1", "b:2", &[]), Ok(()));
        assert_eq!(judged("a:1", "s:2", &[]), Ok(()));
        assert_eq!(judged("a:1", "grpcs://other:1", &[]), Ok(()));
        assert_eq!(judged("a:1", "evil:1", &[]), Err(Declined::UnknownHost));
    }

    #[test]
    fn a_list_names_all_that_is_followed() {
        let allowed = &["good", "port:7", "[::1]"];
        for target in ["good:1", "grpcs://GOOD:2", "port:7", "[::1]:5", "a:1"] {
            assert_eq!(judged("a:9", target, allowed), Ok(()), "{target}");
        }
        for target in ["port:8", "grpcs://other:1", "a:2"] {
            assert_eq!(judged("a:9", target, allowed), Err(Declined::NotAllowed), "{target}");
        }
    }

    #[test]
    fn nothing_lowers_tls() {
        assert_eq!(judged("grpcs://s:1", "grpc://s:2", &[]), Err(Declined::LowersTls));
        assert_eq!(judged("grpcs://s:1", "grpc://s:2", &["s"]), Err(Declined::LowersTls));
    }

    #[test]
    fn a_target_is_a_host_or_a_port_of_it() {
        for text in ["", ":1", "h:x", "https://h", "h/x"] {
            assert!(RedirectTarget::parse(text).is_err(), "{text}");
        }
    }
}
