//! What an operator admits although it is private.

use std::net::IpAddr;

use ipnet::IpNet;
use url::{Host, Url};

/// Hosts and address blocks that the guard lets pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    nets: Vec<IpNet>,
    hosts: Vec<AllowedHost>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct AllowedHost {
    host: String,
    port: Option<u16>,
}

/// An item is neither a host, nor a host and port, nor a CIDR block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{item}` is no host, host:port or CIDR block")]
pub struct AllowListError {
    /// The item as written.
    pub item: String,
}

impl AllowList {
    /// Parses a list of hosts (`minio`), hosts with a port (`minio:9000`, `[::1]:80`), addresses and CIDR blocks.
    ///
    /// # Errors
    /// An item is none of these.
    pub fn parse<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Result<Self, AllowListError> {
        let mut list = Self::default();
        for item in items {
            list.add(item.as_ref()).ok_or_else(|| AllowListError { item: item.as_ref().to_owned() })?;
        }
        Ok(list)
    }

    /// Whether the URL's host, with its port, was named.
    pub fn admits_url(&self, url: &Url) -> bool {
        self.hosts.iter().any(|allowed| {
            url.host_str() == Some(&allowed.host)
                && allowed.port.is_none_or(|port| url.port_or_known_default() == Some(port))
        })
    }

    /// Whether the address lies in a block of the list.
    pub fn admits_ip(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.nets.iter().any(|net| net.contains(&ip))
    }

    fn add(&mut self, item: &str) -> Option<()> {
        if let Ok(net) = item.parse() {
            self.nets.push(net);
        } else if let Ok(ip) = item.parse::<IpAddr>() {
            self.nets.push(ip.into());
        } else {
            self.hosts.push(AllowedHost::parse(item)?);
        }
        Some(())
    }
}

impl AllowedHost {
    fn parse(item: &str) -> Option<Self> {
        let (host, port) = match item.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (item, None),
        };
        let host = Host::parse(host).ok()?.to_string();
        Some(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(list: &str, url: &str) -> bool {
        AllowList::parse(list.split(',')).unwrap().admits_url(&url.parse().unwrap())
    }

    #[test]
    fn a_host_is_admitted_with_its_port_only() {
        assert!(admits("minio", "http://MINIO:9000/x"));
        assert!(admits("minio:9000", "http://minio:9000/x"));
        assert!(admits("minio:80", "http://minio/x"));
        assert!(admits("[::1]:80", "http://[::1]/x"));
        assert!(admits("127.0.0.1:81", "http://127.0.0.1:81/"));
        assert!(!admits("minio:9000", "http://minio:9001/x"));
        assert!(!admits("minio", "http://minio.evil.example/"));
        assert!(!admits("127.0.0.1:81", "http://127.0.0.1:82/"));
    }

    #[test]
    fn a_block_admits_its_addresses() {
        let list = AllowList::parse(["10.0.0.0/8", "192.168.1.7", "fd00::/8"]).unwrap();
        for (ip, admitted) in [
            ("10.9.9.9", true),
            ("11.0.0.1", false),
            ("192.168.1.7", true),
            ("192.168.1.8", false),
            ("fd00::5", true),
            ("::ffff:10.0.0.1", true),
        ] {
            assert_eq!(list.admits_ip(ip.parse().unwrap()), admitted, "{ip}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for item in ["10.0.0.0/99", "a b", "host:port", "http://x"] {
            assert_eq!(AllowList::parse([item]).unwrap_err().item, item);
        }
    }
}
