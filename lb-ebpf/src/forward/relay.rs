//! `forward = "l2"`, and stripping for `local`: the packet keeps its IP addresses, and goes to another MAC address or
//! to this host.

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    reason::{Reason, ReasonCode},
    scratch::TransmitDescriptor,
    service::{FORWARD_L2, Service},
};

use super::{
    descriptor::{backend_at, check_mtu, ip_at},
    head::{self, L2Header},
};
use crate::{
    headers::{Ip, Ipv4, Ipv6},
    packet::Frame,
    scratch::Mailboxes,
    subprogram::subprogram,
};

/// Whether an unchanged packet needs only other MAC addresses.
#[inline(always)]
pub fn is_enough(frame: &Frame, service: &Service, backend: &Backend) -> bool {
    service.forward == FORWARD_L2 && backend.ifindex == frame.ingress() && backend.tag_count == TAGS_KEPT
}

/// Writes the MAC addresses of the path to a backend.
#[inline(always)]
pub fn rewrite_macs(frame: &Frame, backend: &Backend) -> Result<(), ReasonCode> {
    Ok(frame.start().write_words(0, &head::of_backend(backend)).ok_or(Reason::Internal)?)
}

subprogram! {
    /// Sends the packet to the MAC address of a backend, or of the router on the path to it.
    pub fn relay(backend: u32) -> () = relayed;
    /// Removes the token from a packet that stays on this host.
    pub fn strip() -> () = stripped;
}

#[inline(always)]
fn relayed(frame: &Frame, mailboxes: &mut Mailboxes, backend: u32) -> Result<(), ReasonCode> {
    let backend = backend_at(backend)?;
    let transmit = &mut mailboxes.open()?.transmit;
    if backend.ifindex != frame.ingress() {
        check_mtu(transmit, backend, 0)?;
    }
    match transmit.v6 {
        0 => send::<Ipv4>(frame, transmit, Some(backend)),
        _ => send::<Ipv6>(frame, transmit, Some(backend)),
    }
}

#[inline(always)]
fn stripped(frame: &Frame, mailboxes: &mut Mailboxes) -> Result<(), ReasonCode> {
    let transmit = &mailboxes.open()?.transmit;
    match transmit.v6 {
        0 => send::<Ipv4>(frame, transmit, None),
        _ => send::<Ipv6>(frame, transmit, None),
    }
}

#[inline(always)]
fn send<I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    backend: Option<&Backend>,
) -> Result<(), ReasonCode> {
    let came = L2Header::of(frame, ip_at(transmit))?;
    let l2 = backend.map_or(came, |backend| came.toward(frame, backend));
    let (ip, udp) = head::own::<I>(frame, transmit)?;
    head::write(frame, transmit, &l2, I::ETHER_TYPE, head::NOTHING, ip, udp)
}
