//! The transmit descriptor: written by the checks, read by the subprogram that sends the packet.

use lb_common::{
    backend::Backend,
    balance,
    nat::Owner,
    reason::{Reason, ReasonCode},
    scratch::TransmitDescriptor,
    service::Service,
    token::header,
};

use crate::{
    headers::{Ip, Ipv4, Ipv6, Udp},
    maps::BACKENDS,
    packet::Cursor,
    parse::Datagram,
    run::Run,
    verifier::IP_AT_MASK,
};

/// Describes a datagram with a valid token.
#[inline(always)]
pub fn describe_datagram(
    run: &mut Run,
    datagram: &Datagram,
    service: &Service,
    session: u64,
) -> Result<(), ReasonCode> {
    let headers = u32::from(datagram.ip_len) + Udp::LEN as u32;
    let transmit = &mut run.mailboxes.open()?.transmit;
    transmit.ip_at = datagram.ip.offset_in(&run.frame) as u32;
    transmit.len = headers + u32::from(datagram.payload_len);
    transmit.stripped = if service.strips() { header::LEN as u32 } else { 0 };
    transmit.spread = balance::spread(session);
    transmit.owner = Owner::session(service.id, session);
    transmit.v6 = u16::from(datagram.ip_len == Ipv6::LEN as u16);
    transmit.has_checksum = datagram.has_checksum.into();
    Ok(())
}

/// Describes any packet that keeps its payload. Whether it has a checksum is not known.
#[inline(always)]
pub fn describe_packet(run: &mut Run, (ip, v6): (Cursor, bool), owner: Owner) -> Result<(), ReasonCode> {
    let (len, least) = match v6 {
        false => (Ipv4::read(ip).map(|header| header.packet_len()), Ipv4::LEN),
        true => (Ipv6::read(ip).map(|header| header.packet_len()), Ipv6::LEN),
    };
    let len = len.filter(|len| *len >= least as u32 && run.frame.holds(ip, *len)).ok_or(Reason::Malformed)?;
    let transmit = &mut run.mailboxes.open()?.transmit;
    transmit.ip_at = ip.offset_in(&run.frame) as u32;
    transmit.len = len;
    transmit.stripped = 0;
    transmit.spread = balance::spread(owner.of);
    transmit.owner = owner;
    transmit.v6 = v6.into();
    transmit.has_checksum = 0;
    Ok(())
}

/// The offset of the packet's IP header, within the bounds that the verifier needs.
#[inline(always)]
pub const fn ip_at(transmit: &TransmitDescriptor) -> usize {
    transmit.ip_at as usize & IP_AT_MASK
}

/// The backend at an index.
#[inline(always)]
pub fn backend_at(index: u32) -> Result<&'static Backend, ReasonCode> {
    Ok(BACKENDS.get(index).ok_or(Reason::NoBackend)?)
}

/// Checks that a packet with `outer` bytes of outer headers fits the path to a backend. If not, stores the size that
/// would fit.
#[inline(always)]
pub fn check_mtu(
    transmit: &mut TransmitDescriptor,
    backend: &Backend,
    outer: usize,
) -> Result<(), ReasonCode> {
    let most = u32::from(backend.mtu) + transmit.stripped;
    if transmit.len + outer as u32 <= most {
        return Ok(());
    }
    transmit.mtu = most.saturating_sub(outer as u32);
    Err(Reason::TooBig.into())
}
