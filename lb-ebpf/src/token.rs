//! Steps 2 to 5: what a token says of itself, its key, its time and its fast tag.
//!
//! Up to the fast tag only arrays and small hot maps are read, and nothing is written.

use lb_common::{
    keyslot::KeySlot,
    live::Live,
    reason::Reason,
    service::Service,
    token::{
        Header, Kind, Source,
        header::{self, Binding},
        tags,
    },
};

use crate::{
    clock,
    maps::KEY_SLOTS,
    packet::{Cursor, Frame},
    parse::Datagram,
};

/// A token whose fast tag is right: junk is not this, a copy is. What can be had again is not kept: the stack is short.
pub struct Token {
    /// Where its header is.
    pub at: Cursor,
    /// Its type.
    pub kind: Kind,
    /// The slot of the key that made it.
    pub slot: u32,
}

impl Token {
    /// Its header.
    #[inline(always)]
    pub fn header(&self) -> Result<Header, Reason> {
        self.at.read(0).map(Header::again).ok_or(Reason::Internal)
    }
}

/// Reads and checks the token of a datagram.
#[inline(always)]
pub fn check(
    frame: &Frame,
    datagram: &Datagram,
    from: &Source,
    service: &Service,
    live: &Live,
) -> Result<Token, Reason> {
    if usize::from(datagram.payload_len) < header::LEN {
        return Err(Reason::NoToken);
    }
    let at = datagram.payload(frame);
    let header = Header::parse(at.read(0).ok_or(Reason::Unsupported)?)?;
    header.allowed_by(service)?;

    let now = clock::now(live);
    let key_id = header.key_id();
    let key = KEY_SLOTS.get(key_id.slot()).ok_or(Reason::UnknownKey)?;
    key.admits(key_id, service.id, now.unix_ns)?;
    header.lives(service, now.unix_ns)?;

    let binding = header.binding(from)?;
    if !signed_by(key, at, binding) {
        return Err(Reason::BadFastTag);
    }
    Ok(Token { at, kind: header.kind(), slot: key_id.slot() })
}

/// Whether the fast tag is right. The header is read again, word by word as SipHash takes it. Not a function of its own:
/// returning from one costs a fifth of the tag where returns are made safe (SRSO).
#[inline(always)]
fn signed_by(key: &KeySlot, at: Cursor, binding: Binding) -> bool {
    at.read(0)
        .map(Header::again)
        .is_some_and(|header| tags::fast(key.fast, &header, &binding) == header.fast_tag())
}
