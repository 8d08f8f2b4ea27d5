//! Constants of the protocols in a frame that `network-types` does not have.

use network_types::{eth::EtherType, ip::IpProto};

/// Bytes of the two MAC addresses that begin a frame.
pub const MAC_ADDRESSES_LEN: usize = 12;
/// Bytes of an ICMP header, the same for ICMPv6 (RFC 792, RFC 4443 §2.1).
pub const ICMP_LEN: usize = 8;
/// Version and header length of an IPv4 header without options.
pub const IPV4_VERSION_IHL: u8 = 0x45;
/// Header length of an IPv4 header without options, in 32-bit words.
pub const IPV4_IHL: u8 = 5;
/// "Don't fragment" in the third word of an IPv4 header (RFC 791 §3.1).
pub const DONT_FRAGMENT: u16 = 1 << 14;
/// "More fragments" in the third word of an IPv4 header.
pub const MORE_FRAGMENTS: u16 = 1 << 13;
/// The fragment offset in the third word of an IPv4 header.
pub const FRAGMENT_OFFSET: u16 = MORE_FRAGMENTS - 1;
/// Hop limit of packets that this node originates (IANA, as in Linux).
pub const HOP_LIMIT: u8 = 64;

/// Protocol numbers as constants, for patterns.
pub mod protocol {
    use super::IpProto;

    /// ICMP.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// ICMPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// IPv4 in IP.
    pub const IPV4: u8 = IpProto::Ipv4 as u8;
    /// IPv6 in IP.
    pub const IPV6: u8 = IpProto::Ipv6 as u8;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    /// IPv6 routing header.
    pub const ROUTING: u8 = IpProto::Ipv6Route as u8;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    /// IP authentication header.
    pub const AUTHENTICATION: u8 = IpProto::Ah as u8;
    /// IPv6 destination options.
    pub const DESTINATION: u8 = IpProto::Ipv6Opts as u8;
    /// IPv6 mobility header.
    pub const MOBILITY: u8 = IpProto::MobilityHeader as u8;
}

/// Whether an EtherType is that of a VLAN tag: customer or service tag (IEEE 802.1Q-2022 §9.5).
#[inline(always)]
pub fn is_vlan_tag(ether_type: u16) -> bool {
    ether_type == u16::from(EtherType::Ieee8021q) || ether_type == u16::from(EtherType::Ieee8021ad)
}
