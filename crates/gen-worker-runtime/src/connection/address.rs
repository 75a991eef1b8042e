//! Which scheduler to dial next.

use std::{collections::VecDeque, fmt};

use super::redirect::{Declined, RedirectTarget, judge};

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
        if !Self::is_host(host) {
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

    /// Whether this can be a host's name or address.
    pub(super) fn is_host(text: &str) -> bool {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._[]:%".contains(c);
        !text.is_empty() && text.chars().all(fits)
    }

    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// The name that a certificate has to show.
    pub(super) fn server_name(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn has_host(&self, host: &str) -> bool {
        self.host.eq_ignore_ascii_case(host)
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
    allowed: Vec<RedirectTarget>,
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
    /// `allowed`: where redirects may point; empty: wherever is safe by default.
    pub(crate) fn new(listed: Vec<Address>, allowed: Vec<RedirectTarget>) -> Self {
        let untried = listed.iter().cloned().collect();
        Self { listed, allowed, untried, redirect: None, hops: 0 }
    }

    /// The next address of this pass: a redirect first, then the list in order.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(target) = self.redirect.take() {
            return Next::Dial(target);
        }
        match self.untried.pop_front() {
            Some(address) => Next::Dial(address),
            None => Next::Wait,
        }
    }

    /// A stream to this address was healthy: the next pass starts with it, if it is listed.
    pub(crate) fn connected(&mut self, address: &Address) {
        self.hops = 0;
        self.start_pass(Some(address));
    }

    /// The worker has waited: redirects may be followed again, and the list is tried from its start once it is through.
    pub(super) fn waited(&mut self) {
        self.hops = 0;
        if self.untried.is_empty() {
            self.start_pass(None);
        }
    }

    /// A peer said who leads: dialled next, unless this says why not.
    pub(super) fn redirected(&mut self, from: &Address, leader: &str) -> Result<(), Declined> {
        if leader.is_empty() {
            return Err(Declined::NoLeader);
        }
        let target = Address::parse(leader, from.tls).map_err(Declined::Unreadable)?;
        judge(from, &target, &self.listed, &self.allowed)?;
        self.hops += 1;
        if self.hops > MAX_HOPS {
            return Err(Declined::TooMany(self.hops));
        }
        self.redirect = Some(target);
        Ok(())
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
        let mut addresses = Addresses::new(vec![address("a:1"), address("b:2")], Vec::new());
        assert_eq!(addresses.next(), Next::Dial(address("a:1")));
        assert_eq!(addresses.next(), Next::Dial(address("b:2")));
        assert_eq!(addresses.next(), Next::Wait);
        addresses.waited();
        assert_eq!(addresses.next(), Next::Dial(address("a:1")));
    }

    #[test]
    fn a_dead_leader_does_not_stay_first() {
        let mut addresses = Addresses::new(vec![address("a:1"), address("a:2")], Vec::new());
        assert_eq!(addresses.next(), Next::Dial(address("a:1")));
        assert_eq!(addresses.redirected(&address("a:1"), "a:9"), Ok(()));
        assert_eq!(addresses.next(), Next::Dial(address("a:9")));
        assert_eq!(addresses.next(), Next::Dial(address("a:2")));
        assert_eq!(addresses.next(), Next::Wait);
    }

    #[test]
    fn redirects_are_followed_again_after_a_wait() {
        let mut addresses = Addresses::new(vec![address("a:1")], Vec::new());
        for _ in 0..2 {
            for _ in 0..MAX_HOPS {
                assert_eq!(addresses.redirected(&address("a:1"), "a:2"), Ok(()));
            }
            assert_eq!(addresses.redirected(&address("a:1"), "a:2"), Err(Declined::TooMany(6)));
            addresses.waited();
        }
    }

    #[test]
    fn a_redirect_inherits_tls() {
        let mut addresses = Addresses::new(vec![address("grpcs://s:1")], Vec::new());
        assert_eq!(addresses.redirected(&address("grpcs://s:1"), "other:1"), Ok(()));
        assert_eq!(addresses.next(), Next::Dial(address("grpcs://other:1")));
        assert_eq!(addresses.redirected(&address("grpcs://s:1"), ""), Err(Declined::NoLeader));
        let unreadable = Declined::Unreadable(AddressError::HostPort);
        assert_eq!(addresses.redirected(&address("grpcs://s:1"), "nowhere"), Err(unreadable));
    }
}
