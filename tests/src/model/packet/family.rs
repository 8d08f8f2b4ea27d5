//! IPv4 and IPv6, so that one test runs for both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns this address. If the address is IPv4 and the family is IPv6, returns its twin: the four bytes end the
    /// network half of an address for documentation, so a prefix of n bits has a twin of n + 32.
    pub const fn twin(self, address: IpAddr) -> IpAddr {
        match (self, address) {
            (Self::V6, IpAddr::V4(v4)) => IpAddr::V6(twin_of(v4)),
            _ => address,
        }
    }

    /// [`Family::twin`] with a port.
    pub const fn twin_at(self, at: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.twin(at.ip()), at.port())
    }

    /// Bytes of an IP header without options or extension headers.
    pub const fn header_len(self) -> usize {
        match self {
            Self::V4 => super::IPV4_LEN,
            Self::V6 => super::IPV6_LEN,
        }
    }

    /// The protocol number of its ICMP.
    pub const fn icmp(self) -> u8 {
        match self {
            Self::V4 => super::ICMP,
            Self::V6 => super::ICMPV6,
        }
    }

    /// Its EtherType.
    pub const fn ether_type(self) -> u16 {
        match self {
            Self::V4 => super::ETHER_TYPE_IPV4,
            Self::V6 => super::ETHER_TYPE_IPV6,
        }
    }

    /// The protocol number of a packet of this family inside another.
    pub const fn encapsulated(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 41,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

const fn twin_of(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = v4.octets();
    Ipv6Addr::new(0x2001, 0xdb8, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), 0xfe, 0, 0, 1)
}
