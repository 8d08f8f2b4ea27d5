//! Datagrams of clients to backends.

use lb_common::{
    backend::Backend,
    reason::ReasonCode,
    scratch::{Scratch, TranslationOfPacket, TransmitDescriptor},
};

use super::port;
use crate::{
    forward::{
        descriptor::{backend_at, check_mtu, ip_at},
        head::{self, L2Header},
    },
    headers::{Ip, Ipv4, Ipv6},
    packet::Frame,
    scratch::Mailboxes,
    subprogram::subprogram,
};

/// Sends a datagram to a backend, from the port of this node that represents its client.
#[inline(always)]
pub fn to_backend(frame: &Frame, mailboxes: &mut Mailboxes, backend: u32) -> Result<(), ReasonCode> {
    // The subprogram that sends does not call the port search: nested calls would exceed the stack limit.
    if translate(frame, mailboxes, backend, false)? {
        return Ok(());
    }
    port::find_port(frame, mailboxes, backend)?;
    translate(frame, mailboxes, backend, true).map(|_| ())
}

subprogram! {
    /// Sends a datagram to a backend from a port of this node: the port in the scratch if it is `known`, else the
    /// client's first candidate, if the client holds it. Returns whether the datagram was sent. If not, the frame is
    /// unchanged, and a port must be found.
    fn translate(backend: u32, known: bool) -> bool = translated;
}

#[inline(always)]
fn translated(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    backend: u32,
    known: bool,
) -> Result<bool, ReasonCode> {
    let backend = backend_at(backend)?;
    let Scratch { transmit, translation, .. } = mailboxes.open()?;
    check_mtu(transmit, backend, 0)?;
    match transmit.v6 {
        0 => send::<Ipv4>(frame, transmit, translation, backend, known),
        _ => send::<Ipv6>(frame, transmit, translation, backend, known),
    }
}

#[inline(always)]
fn send<I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    TranslationOfPacket { key, value: wanted, .. }: &mut TranslationOfPacket,
    backend: &Backend,
    known: bool,
) -> Result<bool, ReasonCode> {
    let from = L2Header::of(frame, ip_at(transmit))?;
    let (mut ip, mut udp) = head::own::<I>(frame, transmit)?;
    ip.decrement_ttl()?;
    if !known {
        port::want(key, wanted, transmit, backend, (ip, udp))?;
        if !port::is_first(key, wanted) {
            return Ok(false);
        }
    }
    let addresses = [backend.source_be, backend.address_be];
    udp.rewrite_addresses(&ip.addresses(), &addresses);
    udp.set_ports(key.node_port_be, backend.port_be);
    ip.rewrite_addresses(addresses);
    ip.set_cookie(wanted.cookie);
    head::write(frame, transmit, &from.toward(frame, backend), I::ETHER_TYPE, head::NOTHING, ip, udp)?;
    Ok(true)
}
