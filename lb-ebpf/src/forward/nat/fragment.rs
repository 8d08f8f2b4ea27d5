//! Fragments of a backend's answers: each is sent to the client separately, without reassembly. The first fragment
//! contains the ports. For the later fragments, the ports are found by the values that all fragments of a datagram
//! share.
//!
//! A later fragment that arrives before the first fragment matches no translation. It passes to this host, where it may
//! be for a socket.

use lb_common::{
    control::Tables,
    nat::{FRAGMENTS_TIMEOUT_NS, FragmentKey, FragmentedAnswer, TranslationKey},
    reason::{Reason, ReasonCode},
    scratch::{FragmentOfAnswer, Scratch, TranslationOfPacket},
};

use super::translation::{self, Progress};
use crate::{
    forward::{
        descriptor::ip_at,
        head::{self, L2Header},
    },
    headers::{Ip, Ipv4, Ipv6, Udp},
    maps::FRAGMENTS,
    packet::{Cursor, Frame},
    scratch::Mailboxes,
    shared::Shared,
    subprogram::subprogram,
    wire::{FRAGMENT_OFFSET, IPV4_VERSION_IHL, protocol},
};

/// Bytes of IPv6's fragment header (RFC 8200 §4.5).
const FRAGMENT_LEN: usize = 8;

/// A fragment of a UDP datagram.
struct Fragment {
    /// The identification, in network byte order.
    id_be: u32,
    /// In the first fragment: the offset of the UDP header from the IP header.
    udp_at: Option<usize>,
}

subprogram! {
    /// Rewrites a fragment of an answer, and leaves its translation in the scratch.
    pub fn answer_fragment(ip_at: u32, v6: bool, tables: Tables) -> Progress = answered;
}

#[inline(always)]
fn answered(
    frame: &Frame,
    mailboxes: &mut Mailboxes,
    ip_at: u32,
    v6: bool,
    tables: Tables,
) -> Result<Progress, ReasonCode> {
    let scratch = mailboxes.open()?;
    (scratch.transmit.ip_at, scratch.transmit.stripped) = (ip_at, 0);
    match v6 {
        false => to_client::<Ipv4>(frame, scratch, tables),
        true => to_client::<Ipv6>(frame, scratch, tables),
    }
}

#[inline(always)]
fn to_client<I: Ip>(frame: &Frame, scratch: &mut Scratch, tables: Tables) -> Result<Progress, ReasonCode> {
    let Scratch { transmit, translation, fragment: FragmentOfAnswer { key, answer, .. }, .. } = scratch;
    let from = L2Header::of(frame, ip_at(transmit)).map_err(|_| Reason::NotOurs)?;
    let at = frame.start().skip(ip_at(transmit));
    let mut ip = I::read(at).ok_or(Reason::NotOurs)?;
    let fragment = fragment::<I>(at).ok_or(Reason::NotOurs)?;
    let now_ns = translation::now_ns()?;
    let [backend_be, node_be] = ip.addresses();
    *key = FragmentKey { backend_be, node_be, id_be: fragment.id_be };
    match fragment.udp_at {
        Some(udp_at) => {
            let [backend_port_be, node_port_be] = Udp::read(at, udp_at).ok_or(Reason::NotOurs)?.ports_be();
            *answer = FragmentedAnswer { seen_at_ns: now_ns, backend_port_be, node_port_be, reserved: 0 };
        }
        None => Shared::entry(&FRAGMENTS, key).ok_or(Reason::NotOurs)?.copy_to(answer),
    }
    let FragmentedAnswer { seen_at_ns, backend_port_be, node_port_be, .. } = *answer;
    if now_ns.wrapping_sub(seen_at_ns) >= FRAGMENTS_TIMEOUT_NS {
        return Err(Reason::NotOurs.into());
    }
    let TranslationOfPacket { key: translation_key, value: translation, .. } = translation;
    *translation_key = TranslationKey { backend_be, backend_port_be, node_port_be };
    translation::read(frame, &from, translation_key, &node_be, translation)?;
    if !translation::is_checked(translation, tables)? {
        return Ok(Progress::NeedsCheck);
    }
    ip.decrement_ttl()?;
    let to = [translation.service_be, translation.client_be];
    if let Some(udp_at) = fragment.udp_at {
        // If the table cannot store the entry, the later fragments are not translated.
        let _ = FRAGMENTS.insert(&*key, &*answer, 0);
        // The checksum covers the whole datagram, but only bytes of the first fragment and the pseudo-header change.
        let mut udp = Udp::read(at, udp_at).ok_or(Reason::NotOurs)?;
        udp.rewrite_addresses(&ip.addresses(), &to);
        udp.set_ports(translation.service_port_be, translation.client_port_be);
        udp.write(at, udp_at).ok_or(Reason::NotOurs)?;
    }
    let l2 = translation::l2_to_client(translation);
    ip.rewrite_addresses(to);
    head::write_ip(frame, transmit, &l2, I::ETHER_TYPE, head::NOTHING, ip)?;
    Ok(Progress::Sent)
}

/// Reads the identification of a fragment, and the offset of its UDP header; `None` if it is not UDP after a plain
/// header.
#[inline(always)]
fn fragment<I: Ip>(at: Cursor) -> Option<Fragment> {
    if I::V6 {
        let [next, _, high, low]: [u8; 4] = at.read(I::LEN)?;
        let id_be = at.read(I::LEN + size_of::<u32>())?;
        let direct = I::read(at)?.protocol() == protocol::FRAGMENT && next == protocol::UDP;
        let first = u16::from_be_bytes([high, low]) & !7 == 0;
        direct.then_some(Fragment { id_be, udp_at: first.then_some(I::LEN + FRAGMENT_LEN) })
    } else {
        let header = Ipv4::read(at)?;
        let first = header.fragment() & FRAGMENT_OFFSET == 0;
        let id_be = header.identification_be().into();
        (header.version_ihl() == IPV4_VERSION_IHL)
            .then_some(Fragment { id_be, udp_at: first.then_some(I::LEN) })
    }
}
