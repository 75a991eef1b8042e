//! Which addresses a payload may make the worker dial: public ones only.

use std::{net::IpAddr, sync::LazyLock};

use ipnet::IpNet;

/// What is never dialled for a payload, beside all of IPv6 outside 2000::/3. From the special-purpose address
/// registries of RFC 6890 and its updates, and what wraps or stands for another address.
static FORBIDDEN: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
    [
        "0.0.0.0/8",        // this network, unspecified
        "10.0.0.0/8",       // private
        "100.64.0.0/10",    // carrier-grade NAT
        "127.0.0.0/8",      // loopback
        "168.63.129.16/32", // Azure's metadata and DNS, on a public address
        "169.254.0.0/16",   // link-local, cloud metadata
        "172.16.0.0/12",    // private
        "192.0.0.0/24",     // protocol assignments
        "192.0.2.0/24",     // documentation
        "192.88.99.0/24",   // 6to4 relays
        "192.168.0.0/16",   // private
        "198.18.0.0/15",    // benchmarks
        "198.51.100.0/24",  // documentation
        "203.0.113.0/24",   // documentation
        "224.0.0.0/4",      // multicast
        "240.0.0.0/4",      // reserved, broadcast
        "2001::/23",        // protocol assignments, Teredo
        "2001:db8::/32",    // documentation
        "2002::/16",        // 6to4: holds an IPv4 address
        "3fff::/20",        // documentation
    ]
    .iter()
    .map(|net| net.parse().expect("the table holds networks"))
    .collect()
});

static PUBLIC_V6: LazyLock<IpNet> = LazyLock::new(|| "2000::/3".parse().expect("it is a network"));

/// The address is not public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the address is not public")]
pub struct Forbidden;

/// Whether a payload may make the worker dial this address. An IPv4 address in IPv6 clothes is judged as what it is.
///
/// # Errors
/// It is private, loopback, link-local, multicast, reserved, or holds another address.
pub fn judge(ip: IpAddr) -> Result<(), Forbidden> {
    let ip = ip.to_canonical();
    let public = ip.is_ipv4() || PUBLIC_V6.contains(&ip);
    if public && !FORBIDDEN.iter().any(|net| net.contains(&ip)) { Ok(()) } else { Err(Forbidden) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_addresses_pass() {
        for ip in [
            "1.1.1.1",
            "93.184.216.34",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "2606:2800:220:1::1",
            "::ffff:8.8.8.8",
        ] {
            assert_eq!(judge(ip.parse().unwrap()), Ok(()), "{ip}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for ip in [
            "127.0.0.1",
            "127.255.0.9",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "168.63.129.16",
            "100.64.0.1",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
        ] {
            assert_eq!(judge(ip.parse().unwrap()), Err(Forbidden), "{ip}");
        }
    }
}
