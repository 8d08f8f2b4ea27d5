//! UDP checksums that the sender left to a network card (`CHECKSUM_PARTIAL`, include/linux/skbuff.h): the field
//! contains only the sum of the pseudo-header, and the card would add the rest. A veth has no such card, so frames
//! arrive with a partial checksum. The socket buffer records this, so a packet that passes to this host unchanged needs
//! no change. A frame that this program changes or sends must have a checksum.
//!
//! In generic mode, the socket buffer stays with the frame, and the next device completes the checksum again, at an
//! offset that can be wrong by then. Such a packet is dropped if it would leave from an interface in generic mode.
//!
//! A correct checksum equals the pseudo-header's sum by chance, in one of 65,536 packets. The full computation then
//! yields the same value. A damaged packet passes as correct by chance with the same probability, as with any checksum
//! of 16 bits.

use lb_common::{
    control::Tables,
    reason::{Reason, ReasonCode},
};

use crate::{
    headers::{Ip, Ipv4, Ipv6, Udp},
    mac,
    packet::{Cursor, Frame},
    parse::Datagram,
    run::Run,
    scratch::Mailboxes,
    subprogram::subprogram,
    verifier::IP_AT_MASK,
};

/// Computes the checksum of a datagram whose sender left it to a network card. Any other datagram stays as it is.
/// `leaves`: the datagram will leave this host.
///
/// # Errors
/// `PartialChecksum`, if it would leave from an interface in generic mode.
#[inline(always)]
pub fn complete(run: &mut Run, datagram: &Datagram, leaves: bool) -> Result<(), ReasonCode> {
    let v6 = usize::from(datagram.ip_len) == Ipv6::LEN;
    let partial = if v6 { is_partial::<Ipv6>(datagram.ip) } else { is_partial::<Ipv4>(datagram.ip) };
    if !partial {
        return Ok(());
    }
    let ip_at = datagram.ip.offset_in(&run.frame) as u32;
    complete_checksum(&run.frame, &mut run.mailboxes, ip_at, v6, leaves, run.tables)
}

/// Whether the checksum of the datagram after an IP header is the sum of its pseudo-header.
#[inline(always)]
fn is_partial<I: Ip>(ip: Cursor) -> bool {
    match (I::read(ip), Udp::read(ip, I::LEN)) {
        (Some(header), Some(udp)) => udp.is_partial(&header),
        _ => false,
    }
}

subprogram! {
    /// Computes the checksum of the datagram after the IP header at `ip_at`. `leaves`: the datagram will leave this
    /// host. Fails with `PartialChecksum`, or with `Malformed` if its lengths contradict each other or the frame; then
    /// the frame is unchanged.
    pub fn complete_checksum(ip_at: u32, v6: bool, leaves: bool, tables: Tables) -> () = completed;
}

#[inline(always)]
fn completed(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    ip_at: u32,
    v6: bool,
    leaves: bool,
    tables: Tables,
) -> Result<(), ReasonCode> {
    let ip_at = ip_at as usize & IP_AT_MASK;
    let may_change = !leaves || !mac::is_generic(frame, tables);
    match v6 {
        false => completed_at::<Ipv4>(frame, mailboxes, ip_at, may_change),
        true => completed_at::<Ipv6>(frame, mailboxes, ip_at, may_change),
    }
}

#[inline(always)]
fn completed_at<I: Ip>(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    ip_at: usize,
    may_change: bool,
) -> Result<(), ReasonCode> {
    let at = frame.start().skip(ip_at);
    let ip = I::read(at).ok_or(Reason::Malformed)?;
    let mut udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    let len = u32::from(udp.datagram_len());
    if len < Udp::LEN as u32 || ip.packet_len() != I::LEN as u32 + len {
        return Err(Reason::Malformed.into());
    }
    let found_be = udp.checksum_be();
    udp.set_checksum_be(0);
    let headers = ip.sum_of_pseudo_header().join(udp.sum_of_header());
    let block = &mut mailboxes.open()?.block;
    let payload = frame.sum((ip_at + I::LEN + Udp::LEN) as u32, len - Udp::LEN as u32, block)?;
    udp.set_checksum_be(headers.add_u32(payload).udp_field());
    if udp.checksum_be() == found_be {
        return Ok(()); // It was complete, and looked partial by chance.
    }
    if !may_change {
        return Err(Reason::PartialChecksum.into());
    }
    Ok(udp.write(at, I::LEN).ok_or(Reason::Internal)?)
}
