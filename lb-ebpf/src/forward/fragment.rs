//! Fragments of what a backend answers: each goes to the client by itself. The first has the ports; the others find them by
//! what all fragments of a datagram have in common.
//!
//! A later fragment that comes before the first belongs to nobody yet, and passes to this host, where it may be a socket's.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    live::Tables,
    nat::{FRAGMENTS_TIMEOUT_NS, FragmentKey, FragmentedAnswer, TranslationKey},
    scratch::Load,
};
use network_types::ip::IpProto;

use super::{
    head::{self, Link},
    ip_at, load,
    translate::{self, Unsent},
};
use crate::{
    admit,
    headers::{Ip, Ipv4, Ipv6, MORE_FRAGMENTS, PLAIN, Udp},
    maps::FRAGMENTS,
    packet::{Cursor, Frame},
};

/// Bytes of IPv6's fragment header (RFC 8200 §4.5).
const FRAGMENT_LEN: usize = 8;

/// A fragment of a UDP datagram.
struct Fragment {
    /// The identification, as it lies in memory.
    id_be: u32,
    /// Where the UDP header is behind the IP header's start, in the first fragment.
    udp_at: Option<usize>,
}

/// Rewrites a fragment of an answer, and leaves its translation in the scratch. A global subprogram: the verifier looks at
/// it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answered_in_part(ctx: *mut xdp_md, ip_at: u32, v6: u32, tables: u64) -> u32 {
    let Ok(load) = load() else { return translate::told(Err(Unsent::Nobodys)) };
    load.ip_at = ip_at;
    load.stripped = 0;
    let (frame, tables) = (Frame::at(ctx), Tables::from_word(tables));
    translate::told(match v6 {
        0 => to_client::<Ipv4>(&frame, load, tables),
        _ => to_client::<Ipv6>(&frame, load, tables),
    })
}

#[inline(always)]
fn to_client<I: Ip>(frame: &Frame, load: &Load, tables: Tables) -> Result<(), Unsent> {
    let from = Link::of(frame, ip_at(load)).map_err(|_| Unsent::Nobodys)?;
    let at = frame.start().skip(ip_at(load));
    let mut ip = I::read(at).ok_or(Unsent::Nobodys)?;
    let fragment = fragment::<I>(at).ok_or(Unsent::Nobodys)?;
    let now_ns = translate::now().ok_or(Unsent::Nobodys)?;
    let [backend_be, node_be] = ip.addresses();
    let scratch = admit::scratch().map_err(|_| Unsent::Nobodys)?;
    scratch.fragment_key = FragmentKey { backend_be, node_be, id_be: fragment.id_be };
    match fragment.udp_at {
        Some(udp_at) => {
            let udp = Udp::read(at, udp_at).ok_or(Unsent::Nobodys)?;
            let [backend_port_be, node_port_be] = udp.ports_be();
            scratch.fragment =
                FragmentedAnswer { seen_at_ns: now_ns, backend_port_be, node_port_be, reserved: 0 };
        }
        None => {
            // SAFETY: copied out here and now.
            let first = unsafe { FRAGMENTS.get(&scratch.fragment_key) };
            let FragmentedAnswer { seen_at_ns, backend_port_be, node_port_be, .. } =
                *first.ok_or(Unsent::Nobodys)?;
            // Field by field: copied whole, it is a call of `memmove`, whose frame the stack has no room for on Linux 6.1.
            scratch.fragment = FragmentedAnswer { seen_at_ns, backend_port_be, node_port_be, reserved: 0 };
        }
    }
    let FragmentedAnswer { seen_at_ns, backend_port_be, node_port_be, .. } = scratch.fragment;
    if now_ns.wrapping_sub(seen_at_ns) >= FRAGMENTS_TIMEOUT_NS {
        return Err(Unsent::Nobodys);
    }
    scratch.translation_key = TranslationKey { backend_be, backend_port_be, node_port_be };
    let (key, translation) = (&scratch.translation_key, &mut scratch.translation);
    translate::read(frame, &from, key, &node_be, translation)?;
    translate::is_checked(translation, tables)?;
    ip.age()?;
    let to = [translation.service_be, translation.client_be];
    if let Some(udp_at) = fragment.udp_at {
        // Where it cannot be remembered, the later fragments are nobody's.
        let _ = FRAGMENTS.insert(&scratch.fragment_key, &scratch.fragment, 0);
        // The checksum is the whole datagram's, and changes by what changes in the first fragment.
        let mut udp = Udp::read(at, udp_at).ok_or(Unsent::Nobodys)?;
        udp.readdress(&ip.addresses(), &to);
        udp.set_ports(translation.service_port_be, translation.client_port_be);
        udp.write(at, udp_at).ok_or(Unsent::Nobodys)?;
    }
    let link = translate::to_client(translation);
    ip.readdress(to);
    head::write_ip(frame, load, &link, I::ETHER_TYPE, head::NOTHING, ip)?;
    Ok(())
}

/// What a fragment says of itself; `None` where it is no UDP behind a plain header.
#[inline(always)]
fn fragment<I: Ip>(at: Cursor) -> Option<Fragment> {
    if I::V6 {
        let [next, _, high, low]: [u8; 4] = at.read(I::LEN)?;
        let id_be = at.read(I::LEN + size_of::<u32>())?;
        let direct = I::read(at)?.protocol() == IpProto::Ipv6Frag as u8 && next == IpProto::Udp as u8;
        let first = u16::from_be_bytes([high, low]) & !7 == 0;
        direct.then_some(Fragment { id_be, udp_at: first.then_some(I::LEN + FRAGMENT_LEN) })
    } else {
        let header = Ipv4::read(at)?;
        let first = header.fragment() & (MORE_FRAGMENTS - 1) == 0;
        let id_be = header.identification_be().into();
        (header.vihl() == PLAIN).then_some(Fragment { id_be, udp_at: first.then_some(I::LEN) })
    }
}
