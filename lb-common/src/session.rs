//! The token cache: what the full check of a token found, so that it is paid for once.

/// Key of the cache. The fast tag alone is 64 bits; with the nonce, two tokens never share an entry by chance.
/// Both words as loaded little-endian from the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TokenKey {
    /// The header's fast tag.
    pub fast_tag: u64,
    /// The header's nonce.
    pub nonce: u64,
}

/// What is known of a verified token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Session {
    /// The 40 claim bytes that were verified, as loaded little-endian: a hit counts only if they are the packet's.
    pub claims: [u64; 5],
    /// What they say.
    pub admission: Admission,
    /// Where its last datagram came from.
    pub seen: Seen,
}

/// Where a token's last datagram came from, in one word that is written at once: 48 bits of the client's address and
/// port, and the port of this node that stands for it, where there is one.
///
/// It saves writing the flow, or searching the translation, of every datagram. Two clients that come to the same 48
/// bits share a flow; whoever makes it so holds the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seen(u64);

impl Seen {
    /// A client by its address, two words as they lie in memory (the second is 0 for IPv4), and port.
    #[inline(always)]
    pub const fn client(address: [u64; 2], port_be: u16) -> Self {
        let port = (port_be as u64) << 32;
        // Exact for IPv4; IPv6 is mixed (Fibonacci hashing, Knuth, TAOCP 3, §6.4).
        let mixed = match address {
            [v4, 0] => v4 ^ port,
            [high, low] => (high ^ low.rotate_left(29) ^ port).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16,
        };
        Self(mixed << 16)
    }

    /// The same with a port of this node.
    #[inline(always)]
    pub const fn behind(self, node_port_be: u16) -> Self {
        Self(self.0 & !0xffff | node_port_be as u64)
    }

    /// Whether both are the same client.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        (self.0 ^ other.0) >> 16 == 0
    }

    /// The port of this node, 0 where there is none.
    #[inline(always)]
    pub const fn node_port_be(self) -> u16 {
        self.0 as u16
    }
}

/// What a verified token says of its session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Admission {
    /// The session.
    pub session_id: u64,
    /// The backend it is pinned to; 0 lets the balancer choose.
    pub backend_id: u16,
    /// Its rate class.
    pub class: u8,
    /// Zeros.
    pub reserved: [u8; 5],
}

const _: () = {
    assert!(size_of::<TokenKey>() == 16 && align_of::<TokenKey>() == 8);
    assert!(size_of::<Session>() == 64 && align_of::<Session>() == 8);
    assert!(core::mem::offset_of!(Session, admission) == 40);
};
crate::map_value!(TokenKey, Session);
