//! `forward = "nat"`: to the backend's address and port, from a port of this node that stands for the client; and the
//! backend's answers back to the client.
//!
//! The table of translations is an LRU: where it is full, the client that was quiet for longest gets another port. Which
//! ports a client may have follows from its session, so that its translation is found without another table.

mod check;
pub mod port;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    backend::Backend,
    live::Tables,
    nat::{self, Ports, TIMEOUT_NS, Translation, TranslationKey},
    reason::Reason,
    scratch::Load,
};

use super::{
    Delivery, fits, fragment,
    head::{self, Link},
    ip_at, load,
};
use crate::{
    checksum, clock,
    headers::{Address, Ip, Ipv4, Ipv6, same_address},
    mac,
    maps::{LIVE, NAT_PORTS, SCRATCH, TRANSLATIONS},
    outline,
    packet::Frame,
    parse::Packet,
    verdict::Outcome,
};

/// Sends a datagram to a backend from a port of this node: the one in the scratch if it is `known`, else its client's first, if
/// the client has that. Returns whether it was sent; if not, the frame is as it was, and its port is to be looked for.
#[inline(always)]
pub fn send(frame: &Frame, load: &mut Load, backend: &Backend, known: bool) -> Result<bool, Reason> {
    fits(load, backend, 0)?;
    match load.v6 {
        0 => translated::<Ipv4>(frame, load, backend, known),
        _ => translated::<Ipv6>(frame, load, backend, known),
    }
}

#[inline(always)]
fn translated<I: Ip>(frame: &Frame, load: &Load, backend: &Backend, known: bool) -> Result<bool, Reason> {
    let from = Link::of(frame, ip_at(load))?;
    let (mut ip, mut udp) = head::own::<I>(frame, load)?;
    ip.age()?;
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Reason::Internal)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let (key, wanted) = unsafe { (&mut (*scratch).translation_key, &mut (*scratch).translation) };
    if !known {
        port::wanted(key, wanted, load, backend, (ip, udp))?;
        if !port::is_first(key, wanted) {
            return Ok(false);
        }
    }
    let addresses = [backend.source_be, backend.address_be];
    udp.readdress(&ip.addresses(), &addresses);
    udp.set_ports(key.node_port_be, backend.port_be);
    ip.readdress(addresses);
    ip.set_cookie(wanted.cookie);
    head::write(frame, load, &from.toward(frame, backend), I::ETHER_TYPE, head::NOTHING, ip, udp)?;
    Ok(true)
}

/// Copies a translation that is not over, of this address of the node, for a frame that begins with `from` and comes from
/// where its backend is: whoever is elsewhere may write a backend's address, and is not it.
#[inline(always)]
pub fn read(
    frame: &Frame,
    from: &Link,
    key: &TranslationKey,
    node_be: &Address,
    into: &mut Translation,
) -> Result<(), Unsent> {
    let found = TRANSLATIONS.get_ptr(key).ok_or(Unsent::Nobodys)?;
    // SAFETY: the kernel's entry, which stays allocated.
    unsafe { copy(found, into) };
    let from_backend =
        into.backend_ifindex == frame.ingress() && from.is_in(&into.backend_tags, into.backend_tag_count);
    let own = same_address(&into.node_be, node_be);
    if own && from_backend && !is_over(into.used_at_ns, now().ok_or(Unsent::Nobodys)?) {
        Ok(())
    } else {
        Err(Unsent::Nobodys)
    }
}

/// Copies an entry word by word: LLVM would call a function that copies bytes.
///
/// # Safety
/// Both are translations that stay allocated. Another CPU may write to the kernel's entry.
#[inline(always)]
unsafe fn copy(from: *const Translation, to: *mut Translation) {
    const WORDS: usize = size_of::<Translation>() / size_of::<u64>();
    let (from, to) = (from.cast::<u64>(), to.cast::<u64>());
    let mut word = 0;
    while word < WORDS {
        // SAFETY: within both, and aligned as they are.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
        word += 1;
    }
}

/// The way to the client of a translation.
#[inline(always)]
pub fn to_client(translation: &Translation) -> Link {
    Link::new(translation.addresses_be, &translation.tags, translation.tag_count.into())
}

/// Whether a translation that was used then is over now.
#[inline(always)]
const fn is_over(used_at_ns: u64, now_ns: u64) -> bool {
    now_ns.wrapping_sub(used_at_ns) >= TIMEOUT_NS && now_ns >= used_at_ns
}

/// The kernel's clock.
#[inline(always)]
pub fn now() -> Option<u64> {
    LIVE.get(0).map(|live| clock::now(live).kernel_ns)
}

/// What becomes of a packet for no service: a backend's answer goes to its client.
#[inline(always)]
pub fn answer(frame: &Frame, packet: &Packet, tables: Tables) -> Outcome {
    let Some(ports) = Ports::from_word(NAT_PORTS.load()) else {
        return Outcome::NotOurs;
    };
    let to_port = u16::from_be(packet.to.port_be as u16);
    let (ctx, ip_at, v6) = (frame.context(), packet.ip.offset_in(frame) as u32, packet.from.v6.into());
    let whole = packet.is_plain() && ports.contain(to_port);
    let part = packet.is_fragment() && (ports.contain(to_port) || to_port == 0);
    if !(whole || part) || !mac::is_own(frame, tables) {
        return Outcome::NotOurs;
    }
    let told = if whole {
        let send = |complete| checked(tables, || answered(ctx, ip_at, v6, tables.to_word(), complete));
        match send(0) {
            INCOMPLETE => match checksum::complete_checksum(ctx, ip_at, v6, 1, tables.to_word()) {
                0 => send(1),
                code if code == outline::code(Err(Reason::PartialChecksum)) => INCOMPLETE,
                _ => NOT_TRANSLATED,
            },
            told => told,
        }
    } else {
        checked(tables, || fragment::answered_in_part(ctx, ip_at, v6, tables.to_word()))
    };
    outcome(frame, told, Reason::Reply)
}

/// Sends a packet for a client; where its translation is to be checked first, checks that and sends it then. Not one within
/// the other: their stacks would not fit the limit.
#[inline(always)]
pub fn checked(tables: Tables, send: impl Fn() -> u32) -> u32 {
    match send() {
        UNCHECKED => match check::translation(tables) {
            Ok(()) => send(),
            Err(reason) => told(Err(reason.into())),
        },
        told => told,
    }
}

/// Why a packet for a client has not been sent; the frame is as it was.
#[derive(Clone, Copy)]
pub enum Unsent {
    /// There is no such translation.
    Nobodys,
    /// Something has changed since its translation was last checked.
    Unchecked,
    /// Its checksum was left to a network card.
    Incomplete,
    /// It is counted against the service.
    Refused(Reason),
}

impl From<Reason> for Unsent {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::NotOurs => Self::Nobodys,
            reason => Self::Refused(reason),
        }
    }
}

/// Whether the translation in the scratch was checked against what counts now.
#[inline(always)]
pub fn is_checked(translation: &Translation, tables: Tables) -> Result<(), Unsent> {
    let live = LIVE.get(0).ok_or(Unsent::Nobodys)?;
    if translation.checked == nat::checked(tables, live) { Ok(()) } else { Err(Unsent::Unchecked) }
}

/// What became of a packet for a client, by what such a function returned; the scratch has its translation.
#[inline(always)]
pub fn outcome(frame: &Frame, told: u32, reason: Reason) -> Outcome {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return Outcome::NotOurs };
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let translation = unsafe { &(*scratch).translation };
    let (service, id) = (translation.service_index.into(), translation.owner.service_id);
    match told {
        SENT => {
            let delivery = Delivery::Back { ifindex: translation.ifindex };
            Outcome::Delivered { service, reason: reason.into(), delivery }
        }
        OVER_ITS_HOP_LIMIT => Outcome::Refused { service, reason: Reason::HopLimit },
        REVOKED => Outcome::Refused { service, reason: Reason::Revoked },
        WITHOUT_BACKEND => Outcome::Refused { service, reason: Reason::NoBackend },
        INCOMPLETE => Outcome::Refused { service, reason: Reason::PartialChecksum },
        FAILED => Outcome::refused(frame, (service, id), Reason::Internal),
        _ => Outcome::NotOurs,
    }
}

const NOT_TRANSLATED: u32 = 0;
/// See [`told`].
pub const SENT: u32 = 1;
const OVER_ITS_HOP_LIMIT: u32 = 2;
const FAILED: u32 = 3;
const REVOKED: u32 = 4;
const WITHOUT_BACKEND: u32 = 5;
const UNCHECKED: u32 = 6;
const INCOMPLETE: u32 = 7;

/// As a function that the linker names returns it.
#[inline(always)]
pub const fn told(sent: Result<(), Unsent>) -> u32 {
    match sent {
        Ok(()) => SENT,
        Err(Unsent::Nobodys) => NOT_TRANSLATED,
        Err(Unsent::Unchecked) => UNCHECKED,
        Err(Unsent::Incomplete) => INCOMPLETE,
        Err(Unsent::Refused(Reason::HopLimit)) => OVER_ITS_HOP_LIMIT,
        Err(Unsent::Refused(Reason::Revoked)) => REVOKED,
        Err(Unsent::Refused(Reason::NoBackend)) => WITHOUT_BACKEND,
        Err(Unsent::Refused(_)) => FAILED,
    }
}

/// Rewrites an answer, and leaves its translation in the scratch. `complete` is 1 once its checksum has been computed, which
/// may still look partial, else 0. A global subprogram: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answered(ctx: *mut xdp_md, ip_at: u32, v6: u32, tables: u64, complete: u32) -> u32 {
    let Ok(load) = load() else { return NOT_TRANSLATED };
    load.ip_at = ip_at;
    load.stripped = 0;
    let (frame, tables) = (Frame::at(ctx), Tables::from_word(tables));
    told(match v6 {
        0 => answer_to_client::<Ipv4>(&frame, load, tables, complete != 0),
        _ => answer_to_client::<Ipv6>(&frame, load, tables, complete != 0),
    })
}

#[inline(always)]
fn answer_to_client<I: Ip>(frame: &Frame, load: &Load, tables: Tables, complete: bool) -> Result<(), Unsent> {
    let from = Link::of(frame, ip_at(load)).map_err(|_| Unsent::Nobodys)?;
    let (mut ip, mut udp) = head::own::<I>(frame, load).map_err(|_| Unsent::Nobodys)?;
    let [backend_be, node_be] = ip.addresses();
    let [backend_port_be, node_port_be] = udp.ports_be();
    let scratch = SCRATCH.get_ptr_mut(0).ok_or(Unsent::Nobodys)?;
    // SAFETY: this CPU's own value; a program run is never interrupted by another on the same CPU.
    let (key, translation) = unsafe { (&mut (*scratch).translation_key, &mut (*scratch).translation) };
    *key = TranslationKey { backend_be, backend_port_be, node_port_be };
    read(frame, &from, key, &node_be, translation)?;
    is_checked(translation, tables)?;
    if !complete && udp.is_partial(&ip) {
        return Err(Unsent::Incomplete);
    }
    ip.age()?;
    let link = to_client(translation);
    let to = [translation.service_be, translation.client_be];
    udp.readdress(&ip.addresses(), &to);
    udp.set_ports(translation.service_port_be, translation.client_port_be);
    ip.readdress(to);
    Ok(head::write(frame, load, &link, I::ETHER_TYPE, head::NOTHING, ip, udp)?)
}
