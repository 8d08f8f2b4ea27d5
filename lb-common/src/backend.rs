//! A backend as the program sees it: its next hop. A backend that may not be used is not in the table.

/// The next hop of a backend, resolved by the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Backend {
    /// The service's index on this node.
    pub service_index: u16,
    /// The `backend_id` of token and configuration, 1..=65535; 0 where the table has no backend.
    pub backend_id: u16,
    /// The index of its counter among the backend counters.
    pub counter: u32,
    /// The interface that its frames leave through: one that carries frames as they are, so never a VLAN's unless the
    /// program is on that.
    pub ifindex: u32,
    /// Its MAC address, or that of the router before it.
    pub destination_mac: [u8; 6],
    /// The MAC address of this host's interface towards it.
    pub source_mac: [u8; 6],
    /// The VLAN tags of its frames, the outermost first; tags from `tag_count` on are zero.
    pub tags: [Tag; TAGS_MAX],
    /// The number of tags of its frames, or [`TAGS_KEPT`].
    pub tag_count: u8,
    /// 1 if its address is IPv6, else 0.
    pub v6: u8,
    /// The MTU of the path to it, bytes; an outer header counts.
    pub mtu: u16,
    /// Its UDP port as the wire bytes lie in memory: for `FORWARD_NAT`.
    pub port_be: u16,
    /// Zero.
    pub reserved: u16,
    /// Its address as its wire bytes lie in memory, an IPv4 address v4-mapped: destination of the outer header, or of
    /// the rewritten one.
    pub address_be: [u32; 4],
    /// This node's address towards it, in the same form: source of the outer or the rewritten header.
    pub source_be: [u32; 4],
    /// The bits of `source_be`'s last word that a session's hash fills, so that outer sources spread over the queues
    /// of a receiver; in `source_be` they are zero. 0: all sessions have one source.
    pub spread_be: u32,
}

/// VLAN tags that a frame may have.
pub const TAGS_MAX: usize = 2;
/// As `tag_count`: frames that leave by the interface that they came in on keep their tags; others have none.
pub const TAGS_KEPT: u8 = u8::MAX;

/// A VLAN tag as its wire bytes lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tag {
    /// Tag protocol identifier: 0x8100 (802.1Q) or 0x88a8 (802.1ad).
    pub identifier_be: u16,
    /// Priority, drop eligibility and VLAN id.
    pub control_be: u16,
}

/// Key of the pinned map: the value is the index of the backend that a token names, in a bank of the backends.
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
