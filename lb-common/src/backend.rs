//! The backend table of the XDP program: the next hop of each usable backend. Unusable backends have no entry.

/// The next hop of a backend, resolved by the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// The service's index on this node.
    pub service_index: u16,
    /// The `backend_id` of the token and the configuration, 1..=65535; 0: an unused entry.
    pub backend_id: u16,
    /// The index of its counter in the backend counters.
    pub counter: u32,
    /// The egress interface of its frames. It is never a VLAN interface, unless the program is attached to that
    /// interface: XDP sends frames unchanged, without an added tag.
    pub ifindex: u32,
    /// The destination MAC address: the backend's, or that of the router on the path to it.
    pub destination_mac: [u8; 6],
    /// The source MAC address: that of this host's interface on the path to the backend.
    pub source_mac: [u8; 6],
    /// The VLAN tags of its frames, the outermost first. Tags beyond `tag_count` are zero.
    pub tags: [Tag; TAGS_MAX],
    /// The number of tags of its frames, or [`TAGS_KEPT`].
    pub tag_count: u8,
    /// 1 if its address is IPv6, else 0.
    pub v6: u8,
    /// The MTU of the path to it in bytes, outer headers included.
    pub mtu: u16,
    /// Its UDP port in network byte order, used by `FORWARD_NAT`.
    pub port_be: u16,
    /// Zero.
    pub reserved: u16,
    /// Its address in network byte order; an IPv4 address is v4-mapped. The destination of the outer header, or of the
    /// rewritten header.
    pub address_be: [u32; 4],
    /// This node's address on the path to the backend, in the same form. The source of the outer header, or of the
    /// rewritten header.
    pub source_be: [u32; 4],
    /// The mask of the bits in the last word of `source_be` that the session's hash fills, so that outer source
    /// addresses spread over the receive queues of the backend. These bits are zero in `source_be`. 0: all sessions
    /// have the same source address.
    pub spread_be: u32,
}

/// The maximum number of VLAN tags of a frame.
pub const TAGS_MAX: usize = 2;
/// A value of `tag_count`: a frame that leaves through its ingress interface keeps its tags; other frames get no tags.
pub const TAGS_KEPT: u8 = u8::MAX;

/// A VLAN tag in network byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tag {
    /// Tag protocol identifier: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub identifier_be: u16,
    /// Priority, drop eligibility and VLAN id.
    pub control_be: u16,
}

/// Key of the map `pinned`. Its value is the index, within a bank of the backend table, of the backend that a token
/// names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PinnedKey {
    /// The bank of the tables.
    pub bank: u32,
    /// The service's index on this node.
    pub service_index: u16,
    /// The `backend_id` of the token.
    pub backend_id: u16,
}

const _: () = {
    assert!(size_of::<Backend>() == 76 && align_of::<Backend>() == 4);
    assert!(core::mem::offset_of!(Backend, destination_mac) == 12);
    assert!(core::mem::offset_of!(Backend, tags) == 24);
    assert!(core::mem::offset_of!(Backend, address_be) == 40);
    assert!(core::mem::offset_of!(Backend, spread_be) == 72);
    assert!(size_of::<PinnedKey>() == 8 && align_of::<PinnedKey>() == 4);
};
crate::map_value!(Backend, PinnedKey);
