//! `forward = "nat"`: to the backend's address and port, from a port of this node that stands for the client; and the
//! backend's answers back to the client.
//!
//! The table of translations is an LRU: where it is full, the client that was quiet for longest gets another port. Which
//! ports a client may have follows from its address, so that its translation is found without another table.

use aya_ebpf::bindings::{BPF_NOEXIST, xdp_md};
use lb_common::{
    backend::Backend,
    live::{SECOND_NS, Tables},
    nat::{PROBES, Ports, TIMEOUT_NS, Translation, TranslationKey},
    reason::Reason,
    scratch::Load,
};

use super::{
    Delivery, fits,
    head::{self, Link},
    ip_at, load,
};
use crate::{
    atomic, clock,
    headers::{Address, Ip, Ipv4, Ipv6},
    mac,
    maps::{LIVE, NAT_PORTS, SCRATCH, TRANSLATIONS},
    packet::Frame,
    parse::Packet,
    verdict::Outcome,
};

/// Sends a datagram to a backend from a port of this node.
#[inline(always)]
pub fn send(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    fits(load, backend, 0)?;
    match load.v6 {
        0 => translated::<Ipv4>(frame, load, backend),
        _ => translated::<Ipv6>(frame, load, backend),
    }
}

#[inline(always)]
fn translated<I: Ip>(frame: &Frame, load: &Load, backend: &Backend) -> Result<(), Reason> {
    let from = Link::of(frame, ip_at(load))?;
    let (mut ip, mut udp) = head::own::<I>(frame, load)?;
    ip.age()?;
    let [client_be, service_be] = ip.addresses();
    let [client_port_be, service_port_be] = udp.ports_be();
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let (key, wanted) = unsafe { (&mut (*scratch).translation_key, &mut (*scratch).translation) };
    *wanted = Translation {
        used_at_ns: now().ok_or(Reason::Internal)?,
        client_be,
        service_be,
        node_be: backend.source_be,
        client_port_be,
        service_port_be,
        service_index: backend.service_index,
        tag_count: from.tag_count(),
        ifindex: frame.ingress(),
        addresses_be: from.addresses_back(),
        tags: from.tags(),
        service_id: load.service_id,
        backend_ifindex: backend.ifindex,
        reserved: 0,
    };
    let node_port_be = port_for(key, wanted, backend)?;
    let addresses = [backend.source_be, backend.address_be];
    udp.readdress(&ip.addresses(), &addresses);
    udp.set_ports(node_port_be, backend.port_be);
    ip.readdress(addresses);
    head::write(frame, load, &from.toward(frame, backend), I::ETHER_TYPE, head::NOTHING, ip, udp)
}

/// The port that stands for the client of a translation towards a backend: the one it has, or a free one.
#[inline(always)]
fn port_for(key: &mut TranslationKey, wanted: &Translation, backend: &Backend) -> Result<u16, Reason> {
    match find(key, wanted, backend) {
        None => {}
        Some(found) => {
            // SAFETY: the kernel's entry, which stays allocated. If it becomes another client's at this moment, that one's
            // answers go astray until its next datagram.
            let found = unsafe { &mut *found };
            // Not at every datagram: answers on other CPUs read it.
            if wanted.used_at_ns.wrapping_sub(found.used_at_ns) >= SECOND_NS {
                *found = *wanted;
            }
            return Ok(key.node_port_be);
        }
    }
    let (ports, hash) = candidates(wanted).ok_or(Reason::NatPorts)?;
    for probe in 0..PROBES {
        key.node_port_be = ports.candidate(hash, probe).to_be();
        if let Some(found) = TRANSLATIONS.get_ptr_mut(&*key) {
            // SAFETY: as above; the word is changed by nobody but through `claim`, or to a later time.
            let expired = unsafe {
                let used_at_ns = (&raw const (*found).used_at_ns).read_volatile();
                is_over(used_at_ns, wanted.used_at_ns)
                    && atomic::replace_u64(&raw mut (*found).used_at_ns, used_at_ns, wanted.used_at_ns)
            };
            if !expired {
                continue;
            }
            // Only one CPU comes here for an entry. If it is gone already, so much the better.
            let _ = TRANSLATIONS.remove(&*key);
        }
        if TRANSLATIONS.insert(&*key, wanted, BPF_NOEXIST.into()).is_ok() {
            return Ok(key.node_port_be);
        }
    }
    Err(Reason::NatPorts)
}

/// The port that stands for the client of a translation towards a backend, if it has one.
#[inline(always)]
pub fn port_of(key: &mut TranslationKey, wanted: &Translation, backend: &Backend) -> Option<u16> {
    find(key, wanted, backend).map(|_| key.node_port_be)
}

/// The entry of the client of a translation towards a backend, and its key.
#[inline(always)]
fn find(key: &mut TranslationKey, wanted: &Translation, backend: &Backend) -> Option<*mut Translation> {
    let (ports, hash) = candidates(wanted)?;
    key.backend_be = backend.address_be;
    key.backend_port_be = backend.port_be;
    for probe in 0..PROBES {
        key.node_port_be = ports.candidate(hash, probe).to_be();
        if let Some(found) = TRANSLATIONS.get_ptr_mut(&*key) {
            // SAFETY: the kernel's entry, which stays allocated.
            if same_client(unsafe { &*found }, wanted) {
                return Some(found);
            }
        }
    }
    None
}

#[inline(always)]
fn candidates(wanted: &Translation) -> Option<(Ports, u64)> {
    Some((Ports::from_word(NAT_PORTS.load())?, hash(wanted)))
}

/// Copies a translation that is not over, of this address of the node, for a frame that comes from where its backend is:
/// whoever is elsewhere may write a backend's address, and is not it.
#[inline(always)]
pub fn read(frame: &Frame, key: &TranslationKey, node_be: &Address, into: &mut Translation) -> Option<()> {
    // SAFETY: copied out here and now.
    *into = *unsafe { TRANSLATIONS.get(key) }?;
    let to_node = &into.node_be;
    let own = to_node[3] == node_be[3]
        && to_node[0] == node_be[0]
        && to_node[1] == node_be[1]
        && to_node[2] == node_be[2];
    let from_backend = into.backend_ifindex == frame.ingress();
    (own && from_backend && !is_over(into.used_at_ns, now()?)).then_some(())
}

/// The way to the client of a translation.
#[inline(always)]
pub fn to_client(translation: &Translation) -> Link {
    Link::new(translation.addresses_be, &translation.tags, translation.tag_count.into())
}

#[inline(always)]
fn same_client(one: &Translation, other: &Translation) -> bool {
    let same = |a: &Address, b: &Address| a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
    one.client_port_be == other.client_port_be
        && one.service_port_be == other.service_port_be
        && same(&one.client_be, &other.client_be)
        && same(&one.service_be, &other.service_be)
}

/// Fibonacci hashing (Knuth, TAOCP 3, §6.4). Who can choose addresses to collide holds a token for each.
#[inline(always)]
fn hash(client: &Translation) -> u64 {
    let [a, b, c, d] = client.client_be;
    let ports = u32::from(client.client_port_be) << 16 | u32::from(client.service_port_be);
    let high = u64::from(a ^ c.rotate_left(16)) << 32 | u64::from(b ^ d);
    let mixed = (high ^ u64::from(ports) << 16).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ mixed >> 32
}

/// Whether a translation that was used then is over now.
#[inline(always)]
const fn is_over(used_at_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(used_at_ns) >= TIMEOUT_NS && now_ns >= used_at_ns
}

#[inline(always)]
fn now() -> Option<u64> {
    LIVE.get(0).map(|live| clock::now(live).kernel_ns)
}

/// What becomes of a packet for no service: a backend's answer goes to its client.
#[inline(always)]
pub fn answer(frame: &Frame, packet: &Packet, tables: Tables) -> Outcome {
    let Some(ports) = Ports::from_word(NAT_PORTS.load()) else {
        return Outcome::NotOurs;
    };
    if !packet.is_plain() || !ports.contain(u16::from_be(packet.to.port_be as u16)) {
        return Outcome::NotOurs;
    }
    if !mac::is_own(frame, tables) {
        return Outcome::NotOurs;
    }
    let answered = answered(frame.context(), packet.ip.offset_in(frame) as u32, packet.from.v6.into());
    outcome(frame, answered, Reason::Reply)
}

/// What became of a packet for a client, by what such a function returned; the scratch has its translation.
#[inline(always)]
pub fn outcome(frame: &Frame, told: u32, reason: Reason) -> Outcome {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return Outcome::NotOurs };
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let translation = unsafe { &(*scratch).translation };
    let (service, id) = (translation.service_index.into(), translation.service_id);
    match told {
        SENT => {
            let delivery = Delivery::Back { ifindex: translation.ifindex };
            Outcome::Delivered { service, reason: reason.into(), delivery }
        }
        OVER_ITS_HOP_LIMIT => Outcome::Refused { service, reason: Reason::HopLimit },
        FAILED => Outcome::refused(frame, (service, id), Reason::Internal),
        _ => Outcome::NotOurs,
    }
}

const NOT_TRANSLATED: u32 = 0;
/// See [`told`].
pub const SENT: u32 = 1;
const OVER_ITS_HOP_LIMIT: u32 = 2;
const FAILED: u32 = 3;

/// As a function that the linker names returns it; `None` where there is no translation, and the frame is as it was.
#[inline(always)]
pub const fn told(sent: Option<Result<(), Reason>>) -> u32 {
    match sent {
        None => NOT_TRANSLATED,
        Some(Ok(())) => SENT,
        Some(Err(Reason::HopLimit)) => OVER_ITS_HOP_LIMIT,
        Some(Err(_)) => FAILED,
    }
}

/// Rewrites an answer, and leaves its translation in the scratch. With a name for the linker: looked at by the verifier
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answered(ctx: *mut xdp_md, ip_at: u32, v6: u32) -> u32 {
    let Ok(load) = load() else { return NOT_TRANSLATED };
    load.ip_at = ip_at;
    load.stripped = 0;
    let frame = Frame::at(ctx);
    told(match v6 {
        0 => answer_to_client::<Ipv4>(&frame, load),
        _ => answer_to_client::<Ipv6>(&frame, load),
    })
}

#[inline(always)]
fn answer_to_client<I: Ip>(frame: &Frame, load: &Load) -> Option<Result<(), Reason>> {
    let (mut ip, mut udp) = head::own::<I>(frame, load).ok()?;
    let [backend_be, node_be] = ip.addresses();
    let [backend_port_be, node_port_be] = udp.ports_be();
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let (key, translation) = unsafe { (&mut (*scratch).translation_key, &mut (*scratch).translation) };
    *key = TranslationKey { backend_be, backend_port_be, node_port_be };
    read(frame, key, &node_be, translation)?;
    if let Err(reason) = ip.age() {
        return Some(Err(reason));
    }
    let link = to_client(translation);
    let to = [translation.service_be, translation.client_be];
    udp.readdress(&ip.addresses(), &to);
    udp.set_ports(translation.service_port_be, translation.client_port_be);
    ip.readdress(to);
    Some(head::write(frame, load, &link, I::ETHER_TYPE, head::NOTHING, ip, udp))
}
