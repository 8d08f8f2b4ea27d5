//! Which port of this node stands for a client towards a backend: one of its owner's candidates.
//!
//! The key in the scratch names the backend, and gets the port; the translation in the scratch names the client.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::bpf_get_prandom_u32};
use lb_common::{
    backend::Backend,
    control::SECOND_NS,
    nat::{Held, OWNER_SESSION, Owner, PROBES, Ports, Translation, TranslationKey},
    reason::{Reason, ReasonCode},
    scratch::{Scratch, TranslationOfPacket, TransmitDescriptor},
};

use super::translation::{is_over, now_ns};
use crate::{
    forward::{
        descriptor::{backend_at, ip_at},
        head::L2Header,
    },
    headers::{Address, Ip, Ipv4, Ipv6, Udp},
    maps::{NAT_PORTS, NAT_PORTS_PER_SESSION, TRANSLATIONS},
    packet::Frame,
    scratch::Mailboxes,
    shared::{Shared, field},
    subprogram::subprogram,
    token,
};

/// Writes the part of a datagram's translation that it is found by, and the backend into the key.
#[inline(always)]
pub fn want<I: Ip>(
    key: &mut TranslationKey,
    wanted: &mut Translation,
    transmit: &TransmitDescriptor,
    backend: &Backend,
    (ip, udp): (I, Udp),
) -> Result<(), ReasonCode> {
    wanted.used_at_ns = now_ns()?;
    [wanted.client_be, wanted.service_be] = ip.addresses();
    [wanted.client_port_be, wanted.service_port_be] = udp.ports_be();
    wanted.owner = transmit.owner;
    (key.backend_be, key.backend_port_be) = (backend.address_be, backend.port_be);
    Ok(())
}

/// Whether a client has the first of its candidate ports, and used it within the last second: then the key has the
/// port, and the translation the cookie.
#[inline(always)]
pub fn is_first(key: &mut TranslationKey, wanted: &mut Translation) -> bool {
    let Some(candidates) = Candidates::of(wanted) else { return false };
    key.node_port_be = candidates.at(0);
    let Some(found) = Shared::entry(&TRANSLATIONS, key) else { return false };
    wanted.cookie = field!(found, cookie).read();
    !is_old(found, wanted) && is_of(found, wanted)
}

/// Whether the entry of a client is to be renewed: not at every datagram, because answers on other CPUs read it.
#[inline(always)]
fn is_old(found: Shared<Translation>, wanted: &Translation) -> bool {
    wanted.used_at_ns.wrapping_sub(field!(found, used_at_ns).read()) >= SECOND_NS
}

subprogram! {
    /// Finds the port and the cookie of a datagram: those that its client has, else a port that is free; if the owner
    /// has as many as it may, or none is free, the owner's own port that was used longest ago.
    pub fn find_port(backend: u32) -> () = found_for_datagram;
    /// Finds the port that the client of the translation in the scratch has. Fails with `NotOurs` if it has none.
    pub fn find_port_of_client() -> () = found_for_client;
}

#[inline(always)]
fn found_for_datagram(frame: &Frame, mailboxes: &mut Mailboxes, backend: u32) -> Result<(), ReasonCode> {
    let backend = backend_at(backend)?;
    let Scratch { transmit, translation, .. } = mailboxes.open()?;
    match transmit.v6 {
        0 => describe::<Ipv4>(frame, transmit, translation, backend)?,
        _ => describe::<Ipv6>(frame, transmit, translation, backend)?,
    }
    settle(translation)
}

#[inline(always)]
fn found_for_client(_: &Frame, mailboxes: &mut Mailboxes) -> Result<(), ReasonCode> {
    find(&mut mailboxes.open()?.translation).ok_or(Reason::NotOurs)?;
    Ok(())
}

/// Writes the translation of a datagram, except for the values that an existing entry keeps.
#[inline(always)]
fn describe<I: Ip>(
    frame: &Frame,
    transmit: &TransmitDescriptor,
    TranslationOfPacket { key, value: translation, .. }: &mut TranslationOfPacket,
    backend: &Backend,
) -> Result<(), ReasonCode> {
    let from = L2Header::of(frame, ip_at(transmit))?;
    let at = frame.start().skip(ip_at(transmit));
    let ip = I::read(at).ok_or(Reason::Malformed)?;
    let udp = Udp::read(at, I::LEN).ok_or(Reason::Malformed)?;
    want(key, translation, transmit, backend, (ip, udp))?;
    translation.node_be = backend.source_be;
    translation.service_index = backend.service_index;
    translation.ifindex = frame.ingress();
    translation.addresses_be = from.addresses_back();
    (translation.tags, translation.tag_count) = (from.tags(), from.tag_count());
    let to_backend = from.toward(frame, backend);
    (translation.backend_ifindex, translation.backend_id) = (backend.ifindex, backend.backend_id);
    (translation.backend_tags, translation.backend_tag_count) = (to_backend.tags(), to_backend.tag_count());
    (translation.nonce, translation.issued_at) = match token::header(at.skip(I::LEN + Udp::LEN)) {
        Ok(token) if transmit.owner.kind == OWNER_SESSION => (token.nonce(), token.issued_at()),
        _ => (0, 0),
    };
    // Its first answer is checked.
    translation.checked = 0;
    Ok(())
}

#[inline(always)]
fn settle(translation: &mut TranslationOfPacket) -> Result<(), ReasonCode> {
    let Some(entry) = find(translation) else {
        // SAFETY: the helper has no preconditions.
        translation.value.cookie = unsafe { bpf_get_prandom_u32() };
        return take(translation);
    };
    let wanted = &mut translation.value;
    wanted.cookie = field!(entry, cookie).read();
    if is_old(entry, wanted) {
        if wanted.nonce == field!(entry, nonce).read() {
            wanted.checked = field!(entry, checked).read();
        }
        // If the entry becomes that of another client at this moment, answers to that client go astray until its next
        // datagram.
        entry.copy_from(wanted);
    }
    Ok(())
}

/// The entry of the client; if it has none, `held` describes the other translations of its owner.
#[inline(always)]
fn find(translation: &mut TranslationOfPacket) -> Option<Shared<Translation>> {
    let TranslationOfPacket { key, value: wanted, held, .. } = translation;
    let candidates = Candidates::of(wanted)?;
    *held = Held { used_at_ns: u64::MAX, count: 0, oldest: 0 };
    for probe in 0..PROBES {
        key.node_port_be = candidates.at(probe);
        let Some(found) = Shared::entry(&TRANSLATIONS, key) else { continue };
        if is_of(found, wanted) {
            return Some(found);
        }
        let used_at_ns = field!(found, used_at_ns).read();
        if is_owned_by(found, &wanted.owner) && !is_over(used_at_ns, wanted.used_at_ns) {
            held.count += 1;
            if used_at_ns < held.used_at_ns {
                (held.oldest, held.used_at_ns) = (probe, used_at_ns);
            }
        }
    }
    None
}

/// Makes an entry for a client that has none.
#[inline(always)]
fn take(translation: &mut TranslationOfPacket) -> Result<(), ReasonCode> {
    let TranslationOfPacket { key, value: wanted, held, .. } = translation;
    let candidates = Candidates::of(wanted).ok_or(Reason::NatPorts)?;
    if held.count < NAT_PORTS_PER_SESSION.load() {
        for probe in 0..PROBES {
            key.node_port_be = candidates.at(probe);
            if let Some(found) = Shared::entry(&TRANSLATIONS, key) {
                // The word changes here, or to a later time: of several CPUs, one changes it from the value that was
                // read.
                let used = field!(found, used_at_ns);
                let used_at_ns = used.read();
                if !is_over(used_at_ns, wanted.used_at_ns) || !used.replace(used_at_ns, wanted.used_at_ns) {
                    continue;
                }
                // Only one CPU gets here for an entry. The entry may be gone already.
                let _ = TRANSLATIONS.remove(&*key);
            }
            if TRANSLATIONS.insert(&*key, &*wanted, BPF_NOEXIST.into()).is_ok() {
                return Ok(());
            }
        }
    }
    if held.count == 0 {
        return Err(Reason::NatPorts.into());
    }
    key.node_port_be = candidates.at(held.oldest);
    if let Some(found) = Shared::entry(&TRANSLATIONS, key)
        && field!(found, used_at_ns).replace(held.used_at_ns, wanted.used_at_ns)
    {
        let _ = TRANSLATIONS.remove(&*key);
    }
    // If another CPU was faster, the port is another client's now.
    Ok(TRANSLATIONS.insert(&*key, &*wanted, BPF_NOEXIST.into()).map_err(|_| Reason::NatPorts)?)
}

/// Whether an entry is the one of a client.
#[inline(always)]
fn is_of(found: Shared<Translation>, wanted: &Translation) -> bool {
    field!(found, client_port_be).read() == wanted.client_port_be
        && field!(found, service_port_be).read() == wanted.service_port_be
        && is_owned_by(found, &wanted.owner)
        && is_address(field!(found, client_be), &wanted.client_be)
        && is_address(field!(found, service_be), &wanted.service_be)
}

/// As [`Owner::is`].
#[inline(always)]
fn is_owned_by(found: Shared<Translation>, owner: &Owner) -> bool {
    field!(found, owner.of).read() == owner.of
        && field!(found, owner.service_id).read() == owner.service_id
        && field!(found, owner.kind).read() == owner.kind
}

/// As [`same_address`](crate::headers::same_address), word by word: a copy would take more of the stack.
#[inline(always)]
fn is_address(found: Shared<Address>, wanted: &Address) -> bool {
    (0..wanted.len()).all(|word| found.at(word).is_some_and(|part| part.read() == wanted[word]))
}

/// The ports that a client may have: those of its owner, beginning with one that differs from client to client, so that
/// each client of a session is mostly found at its first.
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
