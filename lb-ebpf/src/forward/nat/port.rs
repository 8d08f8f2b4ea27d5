//! Selects the port of this node that represents a client towards a backend: one of its owner's candidate ports.
//!
//! In the scratch, the key contains the backend and receives the port. The translation contains the client.

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

/// Writes the fields by which a datagram's translation is found, and writes the backend into the key.
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

/// Whether a client holds the first of its candidate ports, and used it within the last second. If so, the key contains
/// the port, and the translation contains the cookie.
#[inline(always)]
pub fn is_first(key: &mut TranslationKey, wanted: &mut Translation) -> bool {
    let Some(candidates) = Candidates::of(wanted) else { return false };
    key.node_port_be = candidates.at(0);
    let Some(found) = Shared::entry(&TRANSLATIONS, key) else { return false };
    wanted.cookie = field!(found, cookie).read();
    !is_old(found, wanted) && is_of(found, wanted)
}

/// Whether the entry of a client must be renewed. It is not renewed for every datagram, because other CPUs read it for
/// answers.
#[inline(always)]
fn is_old(found: Shared<Translation>, wanted: &Translation) -> bool {
    wanted.used_at_ns.wrapping_sub(field!(found, used_at_ns).read()) >= SECOND_NS
}

subprogram! {
    /// Finds the port and the cookie of a datagram: those that its client has, else a free port. If the owner has
    /// reached its limit, or no port is free, the owner's least recently used port.
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
    // The first answer must check the translation.
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
        // If the kernel gives the entry to another client at this moment, answers to that client are misdirected until
        // its next datagram.
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

/// Creates an entry for a client that has none.
#[inline(always)]
fn take(translation: &mut TranslationOfPacket) -> Result<(), ReasonCode> {
    let TranslationOfPacket { key, value: wanted, held, .. } = translation;
    let candidates = Candidates::of(wanted).ok_or(Reason::NatPorts)?;
    if held.count < NAT_PORTS_PER_SESSION.load() {
        for probe in 0..PROBES {
            key.node_port_be = candidates.at(probe);
            if let Some(found) = Shared::entry(&TRANSLATIONS, key) {
                // This word only changes here or to a later time. If several CPUs try, only one replaces the value that
                // was read.
                let used = field!(found, used_at_ns);
                let used_at_ns = used.read();
                if !is_over(used_at_ns, wanted.used_at_ns) || !used.replace(used_at_ns, wanted.used_at_ns) {
                    continue;
                }
                // Only one CPU reaches this for an entry. The entry may already have been removed.
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
    // If another CPU was faster, the port now belongs to another client.
    Ok(TRANSLATIONS.insert(&*key, &*wanted, BPF_NOEXIST.into()).map_err(|_| Reason::NatPorts)?)
}

/// Whether an entry belongs to a client.
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

/// As [`same_address`](crate::headers::same_address), word by word: a copy would need more stack.
#[inline(always)]
fn is_address(found: Shared<Address>, wanted: &Address) -> bool {
    (0..wanted.len()).all(|word| found.at(word).is_some_and(|part| part.read() == wanted[word]))
}

/// The candidate ports of a client: those of its owner, starting at a probe that depends on the client. So most clients
/// of a session are found at their first candidate.
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

    /// The port at a probe, in network byte order.
    #[inline(always)]
    const fn at(&self, probe: u32) -> u16 {
        self.ports.candidate(self.hash, self.first.wrapping_add(probe)).to_be()
    }
}
