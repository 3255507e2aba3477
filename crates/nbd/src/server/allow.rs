//! Which addresses may connect.

use crate::PeerAddress;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// The addresses from which clients are let in. Whoever comes by a Unix socket has passed the
/// permissions of its directory and is always let in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AllowList(Vec<AllowedNet>);

impl AllowList {
    /// Lets in who is in one of these networks; everybody when there are none.
    #[must_use]
    pub const fn new(networks: Vec<AllowedNet>) -> Self {
        Self(networks)
    }

    /// Whether this client is let in.
    #[must_use]
    pub fn allows(&self, client: &PeerAddress) -> bool {
        match client {
            PeerAddress::Unix { .. } => true,
            PeerAddress::Tcp(address) => {
                self.0.is_empty() || self.0.iter().any(|net| net.contains(address.ip()))
            }
        }
    }
}

/// One address, or a network written as `ADDRESS/BITS`. IPv4 addresses inside IPv6
/// (`::ffff:1.2.3.4`) are the IPv4 addresses that they stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllowedNet {
    address: IpAddr,
    bits: u8,
}

/// Why a text is no address and no network.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllowError {
    /// It is something else.
    #[error("it is no IP address and no network such as 192.168.1.0/24 or fd00::/8")]
    Malformed,
    /// More bits than an address has.
    #[error("an address has only {0} bits")]
    TooManyBits(u8),
    /// The address is not the first of the network.
    #[error("the address is inside the network: write {0}")]
    HostBits(AllowedNet),
}

impl AllowedNet {
    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                prefix(net.to_bits().into(), 32, self.bits)
                    == prefix(address.to_bits().into(), 32, self.bits)
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                prefix(net.to_bits(), 128, self.bits) == prefix(address.to_bits(), 128, self.bits)
            }
            _ => false,
        }
    }

    /// The first address of the network that this address is in.
    fn first(self) -> Self {
        let cut = |bits: u128, width| {
            let left = u32::from(width - self.bits);
            prefix(bits, width, self.bits).checked_shl(left).unwrap_or(0)
        };
        let address = match self.address {
            IpAddr::V4(address) => {
                let bits = u32::try_from(cut(address.to_bits().into(), 32)).unwrap_or(0);
                Ipv4Addr::from_bits(bits).into()
            }
            IpAddr::V6(address) => {
                std::net::Ipv6Addr::from_bits(cut(address.to_bits(), 128)).into()
            }
        };
        Self { address, bits: self.bits }
    }
}

/// The first `bits` of an address of `width` bits.
fn prefix(address: u128, width: u8, bits: u8) -> u128 {
    address.checked_shr(u32::from(width - bits)).unwrap_or(0)
}

impl FromStr for AllowedNet {
    type Err = AllowError;

    fn from_str(text: &str) -> Result<Self, AllowError> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| AllowError::Malformed)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().map_err(|_| AllowError::Malformed)?
            }
            Some(_) => return Err(AllowError::Malformed),
            None => width,
        };
        if bits > width {
            return Err(AllowError::TooManyBits(width));
        }
        // A part of the mapped addresses is a network of IPv4.
        let net = match address.to_canonical() {
            canonical @ IpAddr::V4(_) if width == 128 && bits >= 96 => {
                Self { address: canonical, bits: bits - 96 }
            }
            _ => Self { address, bits },
        };
        let first = net.first();
        if net == first { Ok(net) } else { Err(AllowError::HostBits(first)) }
    }
}

impl fmt::Display for AllowedNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::{AllowError, AllowList, AllowedNet};
    use crate::PeerAddress;

    fn list(nets: &[&str]) -> AllowList {
        AllowList::new(nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    fn lets_in(list: &AllowList, address: &str) -> bool {
        list.allows(&PeerAddress::Tcp((address.parse::<std::net::IpAddr>().unwrap(), 1).into()))
    }

    #[test]
    fn networks_end_where_they_end() {
        let some = list(&["1.2.3.4", "10.0.0.0/8", "192.168.4.0/22", "fd00::/8", "::1"]);
        for inside in [
            "1.2.3.4",
            "10.0.0.0",
            "10.255.255.255",
            "192.168.7.255",
            "::ffff:10.1.2.3",
            "fd00::",
            "fdff:ffff::1",
            "::1",
        ] {
            assert!(lets_in(&some, inside), "{inside}");
        }
        for outside in [
            "1.2.3.45",
            "1.2.3.5",
            "9.255.255.255",
            "11.0.0.0",
            "192.168.3.255",
            "192.168.8.0",
            "::ffff:11.1.2.3",
            "fc00::",
            "fe00::",
            "::2",
            "::",
            "::a00:1",
        ] {
            assert!(!lets_in(&some, outside), "{outside}");
        }
    }

    #[test]
    fn no_list_and_unix_sockets_let_everybody_in() {
        assert!(lets_in(&AllowList::default(), "8.8.8.8"));
        assert!(list(&["::1"]).allows(&PeerAddress::Unix { uid: None, pid: None }));
        assert!(lets_in(&list(&["0.0.0.0/0"]), "8.8.8.8"));
        assert!(!lets_in(&list(&["0.0.0.0/0"]), "::1"));
        assert!(lets_in(&list(&["::/0"]), "::1"));
    }

    #[test]
    fn mapped_networks_are_those_of_ipv4() {
        let net: AllowedNet = "::ffff:10.0.0.0/104".parse().unwrap();
        assert_eq!(net.to_string(), "10.0.0.0/8");
        assert_eq!("::ffff:1.2.3.4".parse::<AllowedNet>().unwrap().to_string(), "1.2.3.4/32");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in
            ["", "x", "1.2.3", "1.2.3.4/", "1.2.3.4/x", "1.2.3.4/+8", "1.2.3.4/8/8", "::1/ 8"]
        {
            assert_eq!(bad.parse::<AllowedNet>(), Err(AllowError::Malformed), "{bad}");
        }
        assert_eq!("1.2.3.4/33".parse::<AllowedNet>(), Err(AllowError::TooManyBits(32)));
        assert_eq!("::/129".parse::<AllowedNet>(), Err(AllowError::TooManyBits(128)));
        assert!("::/300".parse::<AllowedNet>().is_err());
        let error = "192.168.1.7/24".parse::<AllowedNet>().unwrap_err();
        assert_eq!(error.to_string(), "the address is inside the network: write 192.168.1.0/24");
        assert!("fd00::1/64".parse::<AllowedNet>().unwrap_err().to_string().ends_with("fd00::/64"));
    }
}
