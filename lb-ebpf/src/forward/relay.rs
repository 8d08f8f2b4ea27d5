//! `forward = "l2"`, and the part of it that `local` needs: the packet itself, to another network card.

use lb_common::{
    backend::{Backend, TAGS_KEPT},
    reason::Reason,
};

use super::{
    Load,
    head::{self, Link},
};
use crate::{
    headers::{Ip, Ipv4, Ipv6},
    packet::Frame,
};

/// No outer header.
const NOTHING: [u8; 0] = [];

/// Sends a packet to a backend's network card, or to a card before it.
#[inline(always)]
pub fn send(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    if backend.ifindex != frame.ingress() {
        load.fits(backend, 0)?;
    } else if load.stripped == 0 && backend.tag_count == TAGS_KEPT {
        let addresses = head::addresses(&backend.destination_mac, &backend.source_mac);
        return frame.start().write(0, addresses).ok_or(Reason::Internal);
    }
    match load.v6 {
        false => relayed::<Ipv4>(frame, load, backend),
        true => relayed::<Ipv6>(frame, load, backend),
    }
}

#[inline(never)]
fn relayed<I: Ip>(frame: &Frame, load: &Load, backend: &Backend) -> Result<(), Reason> {
    let frame = frame.again();
    let link = Link::to(&frame, load, backend)?;
    let (ip, udp) = head::own::<I>(&frame, load)?;
    head::write(&frame, load, &link, I::ETHER_TYPE, NOTHING, ip, udp)
}

/// Takes the token out of a packet that stays on this host.
#[inline(always)]
pub fn strip(frame: &Frame, load: &Load) -> Result<(), Reason> {
    match load.v6 {
        false => stripped::<Ipv4>(frame, load),
        true => stripped::<Ipv6>(frame, load),
    }
}

#[inline(never)]
fn stripped<I: Ip>(frame: &Frame, load: &Load) -> Result<(), Reason> {
    let frame = frame.again();
    let link = Link::of(&frame, load.ip_at())?;
    let (ip, udp) = head::own::<I>(&frame, load)?;
    head::write(&frame, load, &link, I::ETHER_TYPE, NOTHING, ip, udp)
}
