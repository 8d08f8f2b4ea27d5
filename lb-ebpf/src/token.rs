//! Steps 2 to 5: the form of a token, its key, its time and its fast tag.
//!
//! Up to the fast tag, the program reads only arrays and small maps that are in the CPU's caches, and writes nothing.

use lb_common::{
    keyslot::KeySlot,
    reason::{Reason, ReasonCode},
    service::Service,
    token::{
        Header, Kind, Source,
        header::{self, Binding},
        tags,
    },
};

use crate::{clock, maps::KEY_SLOTS, packet::Cursor, parse::Datagram, run::Run};

/// A token with a valid fast tag. It is not junk, but it can be a copy.
pub struct Token {
    /// Its header in the frame.
    pub at: Cursor,
    /// Its type.
    pub kind: Kind,
    /// The slot of the key that signed it.
    pub slot: u32,
}

/// Reads, from the frame, the header of a token whose format has been verified. Headers are read again where they are
/// needed: registers and the 512 bytes of stack cannot keep one for long, and the frame is in the first-level cache.
#[inline(always)]
pub fn header(at: Cursor) -> Result<Header, ReasonCode> {
    Ok(at.read(0).map(Header::from_verified).ok_or(Reason::Internal)?)
}

/// Checks the token of a datagram.
#[inline(always)]
pub fn check(run: &Run, datagram: &Datagram, from: &Source, service: &Service) -> Result<Token, ReasonCode> {
    if usize::from(datagram.payload_len) < header::LEN {
        return Err(Reason::NoToken.into());
    }
    let at = datagram.payload(&run.frame);
    let header = Header::parse(at.read(0).ok_or(Reason::Unsupported)?)?;
    header.allowed_by(service)?;

    let now = clock::now(run.control);
    let key_id = header.key_id();
    let key = KEY_SLOTS.get(key_id.slot()).ok_or(Reason::UnknownKey)?;
    key.admits(key_id, service.id, now.unix_ns)?;
    header.lives(service, now.unix_ns)?;

    let binding = header.binding(from)?;
    if !is_signed_by(key, at, binding) {
        return Err(Reason::BadFastTag.into());
    }
    Ok(Token { at, kind: header.kind(), slot: key_id.slot() })
}

/// Whether the fast tag is valid. Not a subprogram: on kernels with the SRSO mitigation, a function return costs a
/// fifth of the computation of the tag.
#[inline(always)]
fn is_signed_by(key: &KeySlot, at: Cursor, binding: Binding) -> bool {
    header(at).is_ok_and(|header| tags::fast(key.fast, &header, &binding) == header.fast_tag())
}
