//! Which scheduler to dial next.

use std::{collections::VecDeque, fmt};

/// Where a scheduler listens, and whether TLS is spoken there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    tls: bool,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The scheme is not one of gRPC's.
    #[error("the scheme must be grpc, grpcs, http or https")]
    Scheme,
    /// There is no host or no port.
    #[error("expected `host:port`")]
    HostPort,
}

impl Address {
    /// Parses `[scheme://]host:port`. Without a scheme, `tls` decides, and port 443 means TLS.
    ///
    /// # Errors
    /// The scheme is unknown, or the host or port is missing.
    pub fn parse(text: &str, tls: bool) -> Result<Self, AddressError> {
        let (scheme, authority) = match text.trim().split_once("://") {
            Some((scheme, authority)) => (Some(scheme.to_ascii_lowercase()), authority),
            None => (None, text.trim()),
        };
        let (host, port) = authority.trim_end_matches('/').rsplit_once(':').ok_or(AddressError::HostPort)?;
        let port = port.parse().map_err(|_| AddressError::HostPort)?;
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._[]:%".contains(c);
        if host.is_empty() || !host.chars().all(fits) {
            return Err(AddressError::HostPort);
        }
        let tls = match scheme.as_deref() {
            Some("grpcs" | "https") => true,
            Some("grpc" | "http") => false,
            Some(_) => return Err(AddressError::Scheme),
            None => tls || port == 443,
        };
        Ok(Self { host: host.to_owned(), port, tls })
    }

    /// Whether TLS is spoken there.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The URI that an HTTP/2 client dials.
    pub(crate) fn uri(&self) -> String {
        format!("{}://{self}", if self.tls { "https" } else { "http" })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How many redirects in a row are followed before the worker waits. Two peers that point at each other must not make a
/// busy loop.
const MAX_HOPS: u32 = 5;

/// The listed schedulers, and where a redirect pointed.
#[derive(Debug)]
pub(crate) struct Addresses {
    listed: Vec<Address>,
    untried: VecDeque<Address>,
    redirect: Option<Address>,
    hops: u32,
}

/// What to do after a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Dial this one now.
    Dial(Address),
    /// Wait, then start a new pass over the list.
    Wait,
}

impl Addresses {
    pub(crate) fn new(listed: Vec<Address>) -> Self {
        let untried = listed.iter().cloned().collect();
        Self { listed, untried, redirect: None, hops: 0 }
    }

    /// The next address of this pass: a redirect first, then the list in order.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(target) = self.redirect.take() {
            return Next::Dial(target);
        }
        match self.untried.pop_front() {
            Some(address) => Next::Dial(address),
            None => {
                self.start_pass(None);
                Next::Wait
            }
        }
    }

    /// A stream to this address was healthy: the next pass starts with it, if it is listed.
    pub(crate) fn connected(&mut self, address: &Address) {
        self.hops = 0;
        self.start_pass(Some(address));
    }

    /// A peer said who leads. Returns false when the target is not to be dialled.
    pub(crate) fn redirected(&mut self, from: &Address, target: &str) -> bool {
        let Ok(target) = Address::parse(target, from.tls) else {
            return false;
        };
        self.hops += 1;
        if self.hops > MAX_HOPS || !self.allows(from, &target) {
            return false;
        }
        self.redirect = Some(target);
        true
    }

    /// The token goes along, so a redirect never lowers TLS, and in plaintext stays on hosts that are known.
    fn allows(&self, from: &Address, target: &Address) -> bool {
        let known = || self.listed.iter().any(|a| a.host == target.host) || from.host == target.host;
        if target.tls { true } else { !from.tls && known() }
    }

    fn start_pass(&mut self, first: Option<&Address>) {
        let (preferred, rest): (Vec<_>, Vec<_>) = self.listed.iter().cloned().partition(|a| Some(a) == first);
        self.untried = preferred.into_iter().chain(rest).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text, false).unwrap()
    }

    #[test]
    fn the_scheme_decides_about_tls() {
        for (text, tls) in [
            ("a:1", false),
            ("a:443", true),
            ("grpc://a:443", false),
            ("GRPCS://a:1", true),
            ("https://a:1/", true),
            ("[::1]:80", false),
        ] {
            assert_eq!(address(text).is_tls(), tls, "{text}");
        }
        assert!(Address::parse("a:1", true).unwrap().is_tls());
        for text in ["a", ":1", "a:x", "ftp://a:1", "a b:1", "a:1/x"] {
            assert!(Address::parse(text, false).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pass_tries_each_address_once_then_waits() {
        let mut addresses = Addresses::new(vec![address("a:1"), address("b:2")]);
        assert_eq!(addresses.next(), Next::Dial(address("a:1")));
        assert_eq!(addresses.next(), Next::Dial(address("b:2")));
        assert_eq!(addresses.next(), Next::Wait);
        assert_eq!(addresses.next(), Next::Dial(address("a:1")));
    }

    #[test]
    fn a_dead_leader_does_not_stay_first() {
        let mut addresses = Addresses::new(vec![address("a:1"), address("a:2")]);
        assert_eq!(addresses.next(), Next::Dial(address("a:1")));
        assert!(addresses.redirected(&address("a:1"), "a:9"));
        assert_eq!(addresses.next(), Next::Dial(address("a:9")));
        assert_eq!(addresses.next(), Next::Dial(address("a:2")));
        assert_eq!(addresses.next(), Next::Wait);
    }

    #[test]
    fn two_peers_that_point_at_each_other_make_the_worker_wait() {
        let mut addresses = Addresses::new(vec![address("a:1")]);
        let followed = (0..10).filter(|_| addresses.redirected(&address("a:1"), "a:2")).count();
        assert_eq!(followed, 5);
    }

    #[test]
    fn the_token_is_not_carried_off() {
        let mut addresses = Addresses::new(vec![address("a:1"), address("grpcs://s:1")]);
        assert!(!addresses.redirected(&address("a:1"), "evil:1"));
        assert!(!addresses.redirected(&address("grpcs://s:1"), "grpc://s:2"));
        assert!(!addresses.redirected(&address("a:1"), ""));
        assert!(addresses.redirected(&address("grpcs://s:1"), "other:1"), "TLS is inherited");
    }
}
