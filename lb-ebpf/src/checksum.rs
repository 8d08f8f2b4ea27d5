//! UDP checksums that the sender left to a network card (`CHECKSUM_PARTIAL`, include/linux/skbuff.h): the field holds the
//! sum of the pseudo-header alone, and the card would add the rest. A veth has no such card, so the frame arrives like that.
//! The socket buffer of the packet says so, and what passes to this host unchanged is left alone. A frame that this program
//! changes or sends must have a checksum.
//!
//! In generic mode the socket buffer goes with the frame, and the next device adds to the checksum once more, at an offset
//! that may be wrong by then. What would leave from such an interface is dropped.
//!
//! A correct checksum equals the pseudo-header's sum by chance, once in 65,536 packets. Computed in full, it is the same
//! again. A damaged packet passes as correct by chance with the same probability, as with any checksum of 16 bits.

use aya_ebpf::bindings::xdp_md;
use lb_common::{live::Tables, reason::Reason};

use crate::{
    admit,
    headers::{Ip, Ipv4, Ipv6, Udp},
    mac, outline,
    packet::{Cursor, Frame},
    parse::{Datagram, IP_AT_MASK},
};

/// Computes the checksum of a datagram whose sender left it to a network card. Any other datagram stays as it is. `tables` are
/// those of the packet, if the datagram is to leave this host.
///
/// # Errors
/// `PartialChecksum`, if it is to leave from an interface in generic mode.
#[inline(always)]
pub fn complete(frame: &Frame, datagram: &Datagram, leaves: Option<Tables>) -> Result<(), Reason> {
    let v6 = usize::from(datagram.ip_len) == Ipv6::LEN;
    let partial = if v6 { is_partial::<Ipv6>(datagram.ip) } else { is_partial::<Ipv4>(datagram.ip) };
    if !partial {
        return Ok(());
    }
    let ip_at = datagram.ip.offset_in(frame) as u32;
    let (leaves, tables) = (leaves.is_some(), leaves.unwrap_or_default().to_word());
    let code = complete_checksum(frame.context(), ip_at, v6.into(), leaves.into(), tables);
    outline::result(code, [Reason::PartialChecksum])
}

/// Whether the checksum of the datagram behind an IP header is the sum of its pseudo-header.
#[inline(always)]
fn is_partial<I: Ip>(ip: Cursor) -> bool {
    match (I::read(ip), Udp::read(ip, I::LEN)) {
        (Some(header), Some(udp)) => udp.is_partial(&header),
        _ => false,
    }
}

/// Computes the checksum of the datagram behind the IP header at `ip_at`, which `leaves` this host or not. Fails with
/// `PartialChecksum`, or where its lengths contradict each other or the frame; then nothing has changed. A global subprogram:
/// the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn complete_checksum(ctx: *mut xdp_md, ip_at: u32, v6: u32, leaves: u32, tables: u64) -> u32 {
    let frame = Frame::at(ctx);
    let ip_at = ip_at as usize & IP_AT_MASK;
    let may_change = leaves == 0 || !mac::is_generic(&frame, Tables::from_word(tables));
    outline::code(match v6 {
        0 => completed::<Ipv4>(&frame, ip_at, may_change),
        _ => completed::<Ipv6>(&frame, ip_at, may_change),
    })
}

#[inline(always)]
fn completed<I: Ip>(frame: &Frame, ip_at: usize, may_change: bool) -> Result<(), Reason> {
    let at = frame.start().skip(ip_at);
    let ip = I::read(at).ok_or(Reason::Malformed)?;
    let mut udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    let len = u32::from(udp.datagram_len());
    if len < Udp::LEN as u32 || ip.packet_len() != I::LEN as u32 + len {
        return Err(Reason::Malformed);
    }
    let found_be = udp.checksum_be();
    udp.set_checksum_be(0);
    let headers = ip.sum_of_pseudo_header().join(udp.sum_of_header());
    let block = &mut admit::scratch()?.block;
    let payload = frame.sum((ip_at + I::LEN + Udp::LEN) as u32, len - Udp::LEN as u32, block)?;
    udp.set_checksum_be(headers.add_u32(payload).udp_field());
    if udp.checksum_be() == found_be {
        return Ok(()); // It was complete, and looked partial by chance.
    }
    if !may_change {
        return Err(Reason::PartialChecksum);
    }
    udp.write(at, I::LEN).ok_or(Reason::Internal)
}
