//! Step 10, its end: what of the packet leaves, and how. A file for each way to a backend.

mod encapsulate;
mod head;
mod relay;

use lb_common::{
    backend::Backend,
    balance,
    reason::Reason,
    service::{FORWARD_GUE, FORWARD_IPIP, FORWARD_L2, Service},
    session::Admission,
    token::header,
};

use crate::{
    headers::{Ip, Ipv4, Ipv6, Udp},
    packet::{Cursor, Frame},
    parse::{Datagram, Packet},
};

/// How a packet leaves the program.
pub enum Delivery {
    /// On to this host's stack.
    Host,
    /// Out of this interface.
    Send {
        /// The interface.
        ifindex: u32,
        /// Where the backend's counter stands.
        counter: u32,
    },
}

/// What is to be sent on: an IP packet in a frame.
pub struct Load {
    ip_at: u32,
    /// Bytes of it.
    pub len: u32,
    /// Whether it is IPv6.
    pub v6: bool,
    /// Whether its transport is known and has a checksum.
    pub summed: bool,
    /// Bytes to be taken out behind its UDP header: the token's, or none.
    pub stripped: u16,
    /// What spreads its session over outer sources.
    pub spread: u32,
    /// Once it was too big: the longest packet that its sender may send instead.
    pub room: u32,
}

impl Load {
    /// A datagram with a valid token.
    #[inline(always)]
    pub fn admitted(
        frame: &Frame,
        packet: &Packet,
        datagram: &Datagram,
        service: &Service,
        admission: &Admission,
    ) -> Result<Self, Reason> {
        let headers = u32::from(datagram.ip_len) + Udp::LEN as u32;
        Ok(Self {
            ip_at: datagram.ip.offset_in(frame) as u32,
            len: headers + u32::from(datagram.payload_len),
            v6: packet.from.v6,
            summed: datagram.summed,
            stripped: if service.strips() { header::LEN as u16 } else { 0 },
            spread: balance::spread(admission.session_id),
            room: 0,
        })
    }

    /// A packet as it is, whatever it is: its transport is not known.
    #[inline(always)]
    pub fn untouched(frame: &Frame, ip: Cursor, v6: bool, spread: u64) -> Result<Self, Reason> {
        let len = match v6 {
            false => ip.read::<Ipv4>(0).map(|header| header.packet_len()),
            true => ip.read::<Ipv6>(0).map(|header| header.packet_len()),
        };
        let len = len.filter(|len| frame.holds(ip, *len)).ok_or(Reason::Malformed)?;
        let spread = balance::spread(spread);
        Ok(Self { ip_at: ip.offset_in(frame) as u32, len, v6, summed: false, stripped: 0, spread, room: 0 })
    }

    /// Where its IP header begins in the frame: behind Ethernet's and at most four tags, which the verifier cannot know of
    /// a difference of two positions.
    #[inline(always)]
    fn ip_at(&self) -> usize {
        (self.ip_at & 0x1f) as usize
    }

    /// Whether it takes the way to a backend, with so many bytes of outer headers.
    #[inline(always)]
    fn fits(&mut self, backend: &Backend, outer: usize) -> Result<(), Reason> {
        let (mtu, outer, stripped) = (u32::from(backend.mtu), outer as u32, u32::from(self.stripped));
        if self.len + outer <= mtu + stripped {
            return Ok(());
        }
        self.room = (mtu + stripped).saturating_sub(outer);
        Err(Reason::TooBig)
    }
}

/// Passes a datagram with a valid token to this host's stack.
#[inline(always)]
pub fn to_host(frame: &Frame, load: &Load) -> Result<Delivery, Reason> {
    if load.stripped != 0 {
        relay::strip(frame, load)?;
    }
    Ok(Delivery::Host)
}

/// Sends a packet to a backend.
#[inline(always)]
pub fn to_backend(
    frame: &Frame,
    load: &mut Load,
    service: &Service,
    backend: &Backend,
) -> Result<Delivery, Reason> {
    match service.forward {
        FORWARD_L2 => relay::send(frame, load, backend)?,
        FORWARD_IPIP => encapsulate::ipip(frame, load, backend)?,
        FORWARD_GUE => encapsulate::gue(frame, load, backend)?,
        // A newer daemon's.
        _ => return Err(Reason::NoBackend),
    }
    Ok(Delivery::Send { ifindex: backend.ifindex, counter: backend.counter })
}
