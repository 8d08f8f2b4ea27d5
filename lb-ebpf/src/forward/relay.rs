//! `forward = "l2"`, and the part of it that `local` needs: the packet itself, to another network card.

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    reason::Reason,
    scratch::Load,
    service::{FORWARD_L2, Service},
};

use super::{
    fits,
    head::{self, Link},
    ip_at,
};
use crate::{
    headers::{Ip, Ipv4, Ipv6},
    packet::Frame,
};

/// Whether a packet that stays as it is needs other MAC addresses, and nothing else.
#[inline(always)]
pub fn needs_no_more(frame: &Frame, service: &Service, backend: &Backend) -> bool {
    service.forward == FORWARD_L2 && backend.ifindex == frame.ingress() && backend.tag_count == TAGS_KEPT
}

/// Gives a packet the MAC addresses of its way.
#[inline(always)]
pub fn readdress(frame: &Frame, backend: &Backend) -> Result<(), Reason> {
    frame.start().write_words(0, &head::of_backend(backend)).ok_or(Reason::Internal)
}

/// Sends a packet to a backend's network card, or to a router's before it.
#[inline(always)]
pub fn send(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    if backend.ifindex != frame.ingress() {
        fits(load, backend, 0)?;
    }
    match load.v6 {
        0 => relayed::<Ipv4>(frame, load, backend),
        _ => relayed::<Ipv6>(frame, load, backend),
    }
}

#[inline(always)]
fn relayed<I: Ip>(frame: &Frame, load: &Load, backend: &Backend) -> Result<(), Reason> {
    let link = Link::of(frame, ip_at(load))?.toward(frame, backend);
    let (ip, udp) = head::own::<I>(frame, load)?;
    head::write(frame, load, &link, I::ETHER_TYPE, head::NOTHING, ip, udp)
}

/// Takes the token out of a packet that stays on this host.
#[inline(always)]
pub fn strip(frame: &Frame, load: &Load) -> Result<(), Reason> {
    match load.v6 {
        0 => stripped::<Ipv4>(frame, load),
        _ => stripped::<Ipv6>(frame, load),
    }
}

#[inline(always)]
fn stripped<I: Ip>(frame: &Frame, load: &Load) -> Result<(), Reason> {
    let link = Link::of(frame, ip_at(load))?;
    let (ip, udp) = head::own::<I>(frame, load)?;
    head::write(frame, load, &link, I::ETHER_TYPE, head::NOTHING, ip, udp)
}
