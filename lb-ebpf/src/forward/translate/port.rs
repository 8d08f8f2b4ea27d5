//! Which port of this node stands for a client towards a backend: one of its owner's candidates.
//!
//! The key in the scratch says towards which backend, and gets the port; the translation there says for whom.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_prandom_u32};
use lb_common::{
    backend::Backend,
    live::SECOND_NS,
    nat::{Held, OWNER_SESSION, PROBES, Ports, Translation, TranslationKey},
    reason::Reason,
    scratch::{Load, Scratch},
    token::Header,
};

use super::{copy, is_over, now};
use crate::{
    admit, atomic,
    forward::{head::Link, ip_at},
    headers::{Ip, Ipv4, Ipv6, Udp, same_address},
    maps::{NAT_PORTS, NAT_PORTS_PER_SESSION, TRANSLATIONS},
    packet::Frame,
};

/// Lays out the part of a datagram's translation by which it is found, and in the key the backend.
#[inline(always)]
pub fn wanted<I: Ip>(
    key: &mut TranslationKey,
    wanted: &mut Translation,
    load: &Load,
    backend: &Backend,
    (ip, udp): (I, Udp),
) -> Result<(), Reason> {
    wanted.used_at_ns = now().ok_or(Reason::Internal)?;
    [wanted.client_be, wanted.service_be] = ip.addresses();
    [wanted.client_port_be, wanted.service_port_be] = udp.ports_be();
    wanted.owner = load.owner;
    (key.backend_be, key.backend_port_be) = (backend.address_be, backend.port_be);
    Ok(())
}

/// Whether a client has the first of the ports that it may have, and used it within a second: no more is to be looked for.
/// Then the key has the port, and the translation the cookie.
#[inline(always)]
pub fn is_first(key: &mut TranslationKey, wanted: &mut Translation) -> bool {
    let Some(candidates) = Candidates::of(wanted) else { return false };
    key.node_port_be = candidates.at(0);
    let Some(found) = TRANSLATIONS.get_ptr(&*key) else { return false };
    // SAFETY: the kernel's entry, which stays allocated.
    let found = unsafe { &*found };
    wanted.cookie = found.cookie;
    !is_old(found, wanted) && is_of(found, wanted)
}

/// Whether the entry of a client is to become what it is now: not at every datagram, for answers on other CPUs read it.
#[inline(always)]
const fn is_old(found: &Translation, wanted: &Translation) -> bool {
    wanted.used_at_ns.wrapping_sub(found.used_at_ns) >= SECOND_NS
}

/// Looks for the port and the cookie of a datagram: those that its client has, else those of a port that is free; where its
/// owner has as many as it may, or none is free, of the owner's own that was used longest ago.
#[inline(always)]
pub fn of_datagram(frame: &Frame, load: &mut Load, backend: &Backend) -> Result<(), Reason> {
    match load.v6 {
        0 => describe::<Ipv4>(frame, load, backend)?,
        _ => describe::<Ipv6>(frame, load, backend)?,
    }
    settle(admit::scratch()?)
}

/// The port of the client whose translation is in the scratch, if it has one.
#[inline(always)]
pub fn of_client() -> Option<u16> {
    match port_of_client() {
        0 => None,
        _ => Some(admit::scratch().ok()?.translation_key.node_port_be),
    }
}

/// Returns 1 if there is one. A global subprogram: the verifier looks at it once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn port_of_client() -> u32 {
    admit::scratch().is_ok_and(|scratch| find(scratch).is_some()).into()
}

/// Lays out the translation of a datagram, but for what an entry has already.
#[inline(always)]
fn describe<I: Ip>(frame: &Frame, load: &Load, backend: &Backend) -> Result<(), Reason> {
    let from = Link::of(frame, ip_at(load))?;
    let at = frame.start().skip(ip_at(load));
    let ip = I::read(at).ok_or(Reason::Malformed)?;
    let udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    let scratch = admit::scratch()?;
    let (key, translation) = (&mut scratch.translation_key, &mut scratch.translation);
    wanted(key, translation, load, backend, (ip, udp))?;
    translation.node_be = backend.source_be;
    translation.service_index = backend.service_index;
    translation.ifindex = frame.ingress();
    translation.addresses_be = from.addresses_back();
    (translation.tags, translation.tag_count) = (from.tags(), from.tag_count());
    let to_backend = from.toward(frame, backend);
    (translation.backend_ifindex, translation.backend_id) = (backend.ifindex, backend.backend_id);
    (translation.backend_tags, translation.backend_tag_count) = (to_backend.tags(), to_backend.tag_count());
    (translation.nonce, translation.issued_at) = match at.read(I::LEN + Udp::LEN).map(Header::again) {
        Some(token) if load.owner.kind == OWNER_SESSION => (token.nonce(), token.issued_at()),
        _ => (0, 0),
    };
    // Its first answer is checked, whenever that comes.
    translation.checked = 0;
    Ok(())
}

#[inline(always)]
fn settle(scratch: &mut Scratch) -> Result<(), Reason> {
    let Some(entry) = find(scratch) else {
        // SAFETY: the helper has no preconditions.
        scratch.translation.cookie = unsafe { bpf_get_prandom_u32() };
        return take(scratch);
    };
    let wanted = &mut scratch.translation;
    // SAFETY: the kernel's entry, which stays allocated.
    let found = unsafe { &*entry };
    wanted.cookie = found.cookie;
    if is_old(found, wanted) {
        if wanted.nonce == found.nonce {
            wanted.checked = found.checked;
        }
        // SAFETY: as above. If it becomes another client's at this moment, that one's answers go astray until its next
        // datagram.
        unsafe { copy(wanted, entry) };
    }
    Ok(())
}

/// The entry of the client; without one, the scratch has what its owner holds besides.
#[inline(always)]
fn find(scratch: &mut Scratch) -> Option<*mut Translation> {
    let (key, wanted, held) = (&mut scratch.translation_key, &scratch.translation, &mut scratch.held);
    let candidates = Candidates::of(wanted)?;
    *held = Held { used_at_ns: u64::MAX, count: 0, oldest: 0 };
    for probe in 0..PROBES {
        key.node_port_be = candidates.at(probe);
        let Some(entry) = TRANSLATIONS.get_ptr_mut(&*key) else { continue };
        // SAFETY: the kernel's entry, which stays allocated.
        let found = unsafe { &*entry };
        if is_of(found, wanted) {
            return Some(entry);
        }
        if found.owner.is(&wanted.owner) && !is_over(found.used_at_ns, wanted.used_at_ns) {
            held.count += 1;
            if found.used_at_ns < held.used_at_ns {
                (held.oldest, held.used_at_ns) = (probe, found.used_at_ns);
            }
        }
    }
    None
}

/// Makes an entry for a client that has none.
#[inline(always)]
fn take(scratch: &mut Scratch) -> Result<(), Reason> {
    let (key, wanted, held) = (&mut scratch.translation_key, &scratch.translation, &scratch.held);
    let candidates = Candidates::of(wanted).ok_or(Reason::NatPorts)?;
    if held.count < NAT_PORTS_PER_SESSION.load() {
        for probe in 0..PROBES {
            key.node_port_be = candidates.at(probe);
            if let Some(found) = TRANSLATIONS.get_ptr_mut(&*key) {
                // SAFETY: the kernel's entry, which stays allocated.
                let used_at_ns = unsafe { (&raw const (*found).used_at_ns).read_volatile() };
                if !is_over(used_at_ns, wanted.used_at_ns) || !claim(found, used_at_ns, wanted.used_at_ns) {
                    continue;
                }
                // Only one CPU comes here for an entry. If it is gone already, so much the better.
                let _ = TRANSLATIONS.remove(&*key);
            }
            if TRANSLATIONS.insert(&*key, wanted, BPF_NOEXIST.into()).is_ok() {
                return Ok(());
            }
        }
    }
    if held.count == 0 {
        return Err(Reason::NatPorts);
    }
    key.node_port_be = candidates.at(held.oldest);
    if let Some(found) = TRANSLATIONS.get_ptr_mut(&*key)
        && claim(found, held.used_at_ns, wanted.used_at_ns)
    {
        let _ = TRANSLATIONS.remove(&*key);
    }
    // Where another CPU was faster, the port is another client's now.
    TRANSLATIONS.insert(&*key, wanted, BPF_NOEXIST.into()).map_err(|_| Reason::NatPorts)
}

/// Takes an entry that was last used then; false if another CPU has been faster.
#[inline(always)]
fn claim(found: *mut Translation, used_at_ns: u64, now_ns: u64) -> bool {
    // SAFETY: an aligned word of the kernel's entry, which stays allocated. The word is changed by nobody but here, or to a
    // later time.
    unsafe { atomic::replace_u64(&raw mut (*found).used_at_ns, used_at_ns, now_ns) }
}

/// Whether an entry is the one of a client.
#[inline(always)]
fn is_of(found: &Translation, wanted: &Translation) -> bool {
    found.client_port_be == wanted.client_port_be
        && found.service_port_be == wanted.service_port_be
        && found.owner.is(&wanted.owner)
        && same_address(&found.client_be, &wanted.client_be)
        && same_address(&found.service_be, &wanted.service_be)
}

/// The ports that a client may have: its owner's, from one on that differs from client to client, so that each client of a
/// session is mostly found at its first.
struct Candidates {
    ports: Ports,
    hash: u64,
    first: u32,
}

impl Candidates {
    #[inline(always)]
    fn of(wanted: &Translation) -> Option<Self> {
        let ports = Ports::from_word(NAT_PORTS.load())?;
        let [a, b, c, d] = wanted.client_be;
        let client = a ^ b ^ c ^ d ^ u32::from(wanted.client_port_be);
        // Fibonacci hashing (Knuth, TAOCP 3, §6.4).
        Some(Self { ports, hash: wanted.owner.hash(), first: client.wrapping_mul(0x9e37_79b9) >> 28 })
    }

    /// The port at a probe, as it lies in memory.
    #[inline(always)]
    const fn at(&self, probe: u32) -> u16 {
        self.ports.candidate(self.hash, self.first.wrapping_add(probe)).to_be()
    }
}
