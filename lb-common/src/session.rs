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

/// Where a token's last datagram came from, in one word that is written at once. It saves writing the flow of every
/// datagram. Two clients may come to the same word, and then share a flow; whoever makes it so holds the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seen(u64);

impl Seen {
    /// A client by its address, two words as they lie in memory (the second is 0 for IPv4), and port.
    #[inline(always)]
    pub const fn client([high, low]: [u64; 2], port_be: u16) -> Self {
        // Exact for IPv4; what IPv6 has more is mixed in (Fibonacci hashing, Knuth, TAOCP 3, §6.4).
        Self(high ^ (port_be as u64) << 32 ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15))
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
