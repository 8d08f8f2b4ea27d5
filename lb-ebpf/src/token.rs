//! Steps 2 to 5: what a token says of itself, its key, its time and its fast tag.
//!
//! Up to the fast tag only arrays and small hot maps are read, and nothing is written.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
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
    parse::{Datagram, PAYLOAD_AT_MASK},
};

/// A token whose fast tag is right: junk is not this, a copy is. What can be had again is not kept: the stack is short.
pub struct Token {
    /// Where its header is.
    pub at: Cursor,
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
    if header.kind() == Kind::Proof {
        // Without its replay window a PROOF token would be less than it says.
        return Err(Reason::Policy);
    }

    let now = clock::now(live);
    let key_id = header.key_id();
    let key = KEY_SLOTS.get(key_id.slot()).ok_or(Reason::UnknownKey)?;
    key.admits(key_id, service.id, now.unix_ns)?;
    header.lives(service, now.unix_ns)?;

    let Binding { address, port } = header.binding(from)?;
    let slot = key_id.slot();
    match signed(frame.context(), slot, at.offset_in(frame) as u32, address, port.into()) {
        0 => Err(Reason::BadFastTag),
        _ => Ok(Token { at, slot }),
    }
}

/// Whether the fast tag of the token at an offset in the frame is right: 1 or 0. A function of its own for the stack's
/// sake, and with a name for the linker, so that the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn signed(ctx: *mut xdp_md, slot: u32, at: u32, address: u64, port: u32) -> u32 {
    let header = Frame::at(ctx).start().skip(at as usize & PAYLOAD_AT_MASK).read(0).map(Header::again);
    let (Some(header), Some(key)) = (header, KEY_SLOTS.get(slot)) else { return 0 };
    let binding = Binding { address, port: port as u16 };
    (tags::fast(key.fast, &header, &binding) == header.fast_tag()).into()
}
