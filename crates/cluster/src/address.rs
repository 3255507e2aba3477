use crate::refusal::shown;
use crate::{Code, Refusal};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};

/// How many addresses a node can have, and how many one name may resolve to.
pub const MAX_ADDRESSES: usize = 16;

/// Where a node listens: a host name or an IP address, and a port. Nothing is resolved yet.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Reads `host:port`, `1.2.3.4:port` or `[v6]:port`; also without `:port` when there is a
    /// default port.
    ///
    /// # Errors
    /// [`Code::BadAddress`] says what is wrong with the text.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, Refusal> {
        let (host, port) = split(text)?;
        let port = match (port, default_port) {
            (Some(digits), _) => parse_port(text, digits)?,
            (None, Some(port)) => port,
            (None, None) => return bad(text, "it has no port"),
        };
        if port == 0 {
            return bad(text, "port 0 cannot be reached");
        }
        Ok(Self { host: check_host(text, host)?, port })
    }

    /// The host: a name, or an IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Asks the system's resolver; blocks for as long as it takes. An explicit IP address needs
    /// no resolver. IPv4 and IPv6, in the system's order of preference, at most
    /// [`MAX_ADDRESSES`].
    ///
    /// # Errors
    /// [`Code::NameNotResolved`] when the name has no address or nobody answers for it.
    pub fn resolve(&self) -> Result<Vec<SocketAddr>, Refusal> {
        let fail = |why: &str| {
            Refusal::new(
                Code::NameNotResolved,
                format!("the address of {self} cannot be found: {why}"),
                "check the name with `getent hosts`, or write the IP address instead",
            )
        };
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        let mut addresses = Vec::new();
        for address in found.map_err(|error| fail(&error.to_string()))? {
            if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        if addresses.is_empty() { Err(fail("the name has no address")) } else { Ok(addresses) }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for Address {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        Self::parse(&text, None)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Reads an address as [`Address::parse`] and resolves it as [`Address::resolve`]. Blocks.
///
/// # Errors
/// [`Code::BadAddress`] or [`Code::NameNotResolved`].
pub fn resolve(text: &str, default_port: u16) -> Result<Vec<SocketAddr>, Refusal> {
    Address::parse(text, Some(default_port))?.resolve()
}

fn bad<T>(text: &str, why: &str) -> Result<T, Refusal> {
    Err(Refusal::new(
        Code::BadAddress,
        format!("{} is not an address: {why}", shown(text)),
        "write HOST:PORT, 192.0.2.1:PORT or [2001:db8::1]:PORT",
    ))
}

fn split(text: &str) -> Result<(&str, Option<&str>), Refusal> {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return bad(text, "the closing bracket is missing");
        };
        if !host.contains(':') {
            return bad(text, "only IPv6 addresses stand in brackets");
        }
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => bad(text, "only :PORT can follow the closing bracket"),
        };
    }
    match text.split_once(':') {
        Some((_, port)) if port.contains(':') => {
            bad(text, "an IPv6 address must stand in brackets, so that its port can be told")
        }
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((text, None)),
    }
}

fn parse_port(text: &str, digits: &str) -> Result<u16, Refusal> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return bad(text, "the port is not a number");
    }
    digits.parse().or_else(|_| bad(text, "the port is not below 65536"))
}

fn check_host(text: &str, host: &str) -> Result<String, Refusal> {
    if host.contains(':') {
        let (ip, zone) = host.split_once('%').map_or((host, None), |(ip, z)| (ip, Some(z)));
        let Ok(ip) = ip.parse::<Ipv6Addr>() else {
            return bad(text, "what stands in the brackets is not an IPv6 address");
        };
        let Some(zone) = zone else { return Ok(ip.to_string()) };
        let fits = (1..=15).contains(&zone.len());
        if !fits || !zone.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return bad(text, "what stands after '%' is not an interface");
        }
        return Ok(format!("{ip}%{zone}"));
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    check_host_name(text, host)?;
    Ok(host.to_owned())
}

fn check_host_name(text: &str, host: &str) -> Result<(), Refusal> {
    if host.is_empty() {
        return bad(text, "it has no host");
    }
    if host.len() > 253 {
        return bad(text, "the host name is longer than 253 characters");
    }
    let labels = host.strip_suffix('.').unwrap_or(host);
    for label in labels.split('.') {
        if label.is_empty() || label.len() > 63 {
            return bad(text, "a part of the host name is empty or longer than 63 characters");
        }
        if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            return bad(text, "host names have only letters, digits, '-', '_' and '.'");
        }
    }
    // The system's resolver would read "1.2" or "0x7f.1" as an old spelling of some IPv4 address.
    let last = labels.rsplit('.').next().unwrap_or_default();
    if last.starts_with(|c: char| c.is_ascii_digit()) {
        let hex = last.strip_prefix("0x").is_some_and(|h| u64::from_str_radix(h, 16).is_ok());
        if hex || last.bytes().all(|b| b.is_ascii_digit()) {
            return bad(text, "it looks like an IPv4 address, but is none");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Address, resolve};
    use crate::Code;

    #[test]
    fn good_addresses_print_as_they_were_written() {
        for (text, host, port) in [
            ("alpha:7850", "alpha", 7850),
            ("a.example.org.:1", "a.example.org.", 1),
            ("192.0.2.7:65535", "192.0.2.7", 65535),
            ("[::1]:7850", "::1", 7850),
            ("[2001:db8::7]:7850", "2001:db8::7", 7850),
            ("[fe80::1%eth0]:7850", "fe80::1%eth0", 7850),
            ("node_1:9", "node_1", 9),
            ("3com.example:80", "3com.example", 80),
        ] {
            let address = Address::parse(text, None).unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(Address::parse("alpha", Some(7850)).unwrap().to_string(), "alpha:7850");
        assert_eq!(Address::parse("[::1]", Some(7850)).unwrap().to_string(), "[::1]:7850");
        assert_eq!(Address::parse("[0:0::1]:7", None).unwrap().to_string(), "[::1]:7");
    }

    #[test]
    fn bad_addresses_are_refused() {
        let long = format!("{}:1", "a".repeat(300));
        for text in [
            "",
            ":1",
            "alpha",
            "alpha:",
            "alpha:x",
            "alpha:+1",
            "alpha:0",
            "alpha:65536",
            "::1",
            "::1:7850",
            "[::1",
            "[::1]x",
            "[::1]x:1",
            "[::1]:",
            "[alpha]:1",
            "[1.2.3.4]:1",
            "a b:1",
            "a/b:1",
            "-:1:2",
            "256.1.1.1:1",
            "1.2:1",
            "0x7f.0x1:1",
            "a..b:1",
            "ä:1",
            "a\n:1",
            "[fe80::1%]:1",
            "[fe80::1%a/b]:1",
            "[::g]:1",
            &long,
        ] {
            let refusal = Address::parse(text, None).unwrap_err();
            assert_eq!(refusal.code, Code::BadAddress, "{text}");
            assert!(refusal.message.len() < 200 && !refusal.hint.is_empty());
        }
    }

    #[test]
    fn explicit_addresses_resolve_without_a_resolver() {
        assert_eq!(resolve("127.0.0.1", 7850).unwrap(), ["127.0.0.1:7850".parse().unwrap()]);
        assert_eq!(resolve("[::1]:7", 7850).unwrap(), ["[::1]:7".parse().unwrap()]);
    }

    #[test]
    fn localhost_is_a_loopback_address() {
        let found = resolve("localhost:7850", 1).unwrap();
        assert!(
            !found.is_empty() && found.iter().all(|a| a.ip().is_loopback() && a.port() == 7850)
        );
    }
}
