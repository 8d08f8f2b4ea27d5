//! Translations of `forward = "nat"`: each maps a port of this node, towards one backend, to a client.
//!
//! One table serves both directions. A hash of the session determines a few candidate ports for its clients. Therefore
//! a datagram finds its translation without a second table, every port can be used towards every backend, and all
//! translations of a session towards a backend can be found.

use crate::{
    backend::Tag,
    balance::mix,
    control::{SECOND_NS, Tables},
};

/// Key of the translations: the address and the ports of a backend's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TranslationKey {
    /// The backend's address in network byte order; an IPv4 address is v4-mapped.
    pub backend_be: [u32; 4],
    /// The backend's UDP port in network byte order.
    pub backend_port_be: u16,
    /// This node's UDP port in network byte order.
    pub node_port_be: u16,
}

/// The owner of ports. Each owner has its own candidate ports, and a limit of ports towards one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// The session's id, or the source address as in [`Source`](crate::token::Source).
    pub of: u64,
    /// The service's id.
    pub service_id: u32,
    /// `OWNER_*`.
    pub kind: u32,
}

/// A session: its datagrams carry valid tokens.
pub const OWNER_SESSION: u32 = 0;
/// A source address (for IPv6, its first 64 bits) whose datagrams `mode = "observe"` delivers without a valid token.
/// The separate kind prevents a spoofed source address from using up the ports of the session whose id has the same
/// value.
pub const OWNER_SOURCE: u32 = 1;

impl Owner {
    /// A session of a service.
    #[inline(always)]
    pub const fn session(service_id: u32, session_id: u64) -> Self {
        Self { of: session_id, service_id, kind: OWNER_SESSION }
    }

    /// A source address that sends to a service.
    #[inline(always)]
    pub const fn source(service_id: u32, address: u64) -> Self {
        Self { of: address, service_id, kind: OWNER_SOURCE }
    }

    /// Whether the two owners are equal.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        self.of == other.of && self.service_id == other.service_id && self.kind == other.kind
    }

    /// The hash that selects its candidate ports. It has no key: the issuer chooses session ids, not the client, and in
    /// `mode = "observe"` a sender with spoofed source addresses can take all ports anyway.
    #[inline(always)]
    pub const fn hash(&self) -> u64 {
        // Not the mix of the Maglev position: the sessions of a backend would then use only a part of the ports.
        mix(self.of ^ 0x9e37_79b9_7f4a_7c15 ^ (self.service_id as u64) << 32 ^ self.kind as u64)
    }
}

/// The ports that an owner holds among its candidates, collected during the search for a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Held {
    /// When the least recently used translation was last used, in nanoseconds of the kernel's clock.
    pub used_at_ns: u64,
    /// The number of translations that have not timed out.
    pub count: u32,
    /// The probe of the least recently used translation.
    pub oldest: u32,
}

/// The client behind a port of this node, and the path to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// When the client's last datagram passed, in nanoseconds of the kernel's clock.
    pub used_at_ns: u64,
    /// The client's address; an IPv4 address is v4-mapped.
    pub client_be: [u32; 4],
    /// The address that the client sent to.
    pub service_be: [u32; 4],
    /// This node's address, the source of the datagrams that the backend receives.
    pub node_be: [u32; 4],
    /// The client's UDP port.
    pub client_port_be: u16,
    /// The UDP port that the client sent to.
    pub service_port_be: u16,
    /// The service's index on this node.
    pub service_index: u16,
    /// The number of VLAN tags of the client's frames, at most two.
    pub tag_count: u16,
    /// The ingress interface of the client's datagrams.
    pub ifindex: u32,
    /// The MAC addresses of frames to the client: the destination, then the source.
    pub addresses_be: [u32; 3],
    /// The VLAN tags of the client's frames, the outermost first.
    pub tags: [Tag; 2],
    /// The owner of the port.
    pub owner: Owner,
    /// The value of [`checked`] at the last successful check of session and backend; 0: never checked.
    pub checked: u64,
    /// The nonce of the client's last token, loaded little-endian.
    pub nonce: u64,
    /// When that token was issued, unix seconds.
    pub issued_at: u32,
    /// The value in the identification or flow label of packets to the backend. ICMP errors embed it: see
    /// [`COOKIE_MASK_V4`].
    pub cookie: u32,
    /// The interface of the path to the backend. Answers on another interface are spoofed, and are not translated.
    pub backend_ifindex: u32,
    /// The backend's id.
    pub backend_id: u16,
    /// The number of VLAN tags of frames to the backend.
    pub backend_tag_count: u16,
    /// These tags, the outermost first. Answers in another VLAN are spoofed, and are not translated.
    pub backend_tags: [Tag; 2],
}

/// Key of the fragmented answers: the values that all fragments of a datagram share (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FragmentKey {
    /// The backend's address; an IPv4 address is v4-mapped.
    pub backend_be: [u32; 4],
    /// This node's address.
    pub node_be: [u32; 4],
    /// The identification in network byte order: 16 bits in IPv4, 32 bits in IPv6.
    pub id_be: u32,
}

/// The ports of a backend's fragmented answer, from its first fragment. The later fragments have no ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentedAnswer {
    /// When the first fragment arrived, in nanoseconds of the kernel's clock.
    pub seen_at_ns: u64,
    /// The backend's UDP port.
    pub backend_port_be: u16,
    /// This node's UDP port.
    pub node_port_be: u16,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<TranslationKey>() == 20 && align_of::<TranslationKey>() == 4);
    assert!(size_of::<Translation>() == 144 && align_of::<Translation>() == 8);
    assert!(core::mem::offset_of!(Translation, tags) == 80);
    assert!(core::mem::offset_of!(Translation, checked) == 104);
    assert!(size_of::<FragmentKey>() == 36 && align_of::<FragmentKey>() == 4);
    assert!(size_of::<FragmentedAnswer>() == 16 && align_of::<FragmentedAnswer>() == 8);
};
crate::map_value!(TranslationKey, Translation, FragmentKey, FragmentedAnswer);

/// How long after the first fragment of an answer its later fragments are translated. Senders transmit fragments back
/// to back. A short time reduces the risk that a reused identification mixes the fragments of two datagrams.
pub const FRAGMENTS_TIMEOUT_NS: u64 = SECOND_NS;

/// The bits of a cookie that an IPv4 packet carries in its identification. That field has no meaning in a packet that
/// must not be fragmented (RFC 6864 §4.1).
pub const COOKIE_MASK_V4: u32 = 0xffff;
/// The bits of a cookie that an IPv6 packet carries in its flow label (RFC 6437).
pub const COOKIE_MASK_V6: u32 = 0xf_ffff;

/// Identifies the state against which the session and the backend of a translation were checked: the generation of the
/// tables, and the last addition to the revocations (`revocations` in the control page).
#[inline(always)]
pub const fn checked(tables: Tables, revocations: u64) -> u64 {
    (tables.generation as u64) << 32 | revocations as u32 as u64
}

/// How long a translation lasts after its client's last datagram (RFC 4787 REQ-5 recommends five minutes). Only the
/// client's datagrams, which carry tokens, extend it (REQ-6 allows that).
pub const TIMEOUT_NS: u64 = 300 * SECOND_NS;

/// The number of candidate ports of an owner towards a backend. All are tried before a datagram is dropped. With half
/// of all ports taken, one session in 65,000 finds no free port; with three quarters taken, one in a hundred.
pub const PROBES: u32 = 16;

/// The default maximum of translations of a session towards one backend. It is more than 1, because a client's port
/// changes when a NAT in front of the client drops its mapping.
pub const PER_SESSION_DEFAULT: u32 = 8;

/// The UDP ports that are reserved for translations, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first port.
    pub first: u16,
    /// The last port, inclusive.
    pub last: u16,
}

impl Ports {
    /// Decodes the load-time variable; `None` if there are no translations.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        match word {
            0 => None,
            _ => Some(Self { first: (word >> 16) as u16, last: word as u16 }),
        }
    }

    /// Encodes the load-time variable.
    pub const fn to_word(self) -> u32 {
        (self.first as u32) << 16 | self.last as u32
    }

    /// Whether the range contains a port.
    #[inline(always)]
    pub const fn contain(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The candidate port of an owner with this hash at a probe (modulo [`PROBES`]). Each probe has its own sixteenth
    /// of the range, so the candidates of an owner are all different.
    #[inline(always)]
    pub const fn candidate(self, hash: u64, probe: u32) -> u16 {
        let count = self.last as u64 - self.first as u64 + 1;
        let (start, step, probe) = (hash as u32, (hash >> 32) as u32 | 1, (probe % PROBES) as u64);
        let [from, to] = [probe * count / PROBES as u64, (probe + 1) * count / PROBES as u64];
        // Double hashing (Knuth, TAOCP 3, §6.4) within the sixteenth, by Lemire's fast range.
        let within = start.wrapping_add(step.wrapping_mul(probe as u32)) as u64;
        self.first + (from + ((within * (to - from)) >> 32)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn candidates_are_in_range(first in 1u16.., len: u16, hash: u64, probe in 0..PROBES) {
            let ports = Ports { first, last: first.saturating_add(len) };
            prop_assert!(ports.contain(ports.candidate(hash, probe)));
            prop_assert_eq!(Ports::from_word(ports.to_word()), Some(ports));
        }
    }

    /// Sessions with one client each take ports until three quarters of the ports are taken.
    #[test]
    fn few_find_no_port() {
        let ports = Ports { first: 40_000, last: 59_999 };
        let mut taken = std::collections::BTreeSet::new();
        let mut refused = Vec::new();
        for session in 1..=15_000_u64 {
            let hash = Owner::session(42, session).hash();
            let first = session.wrapping_mul(0x9e37_79b9) as u32 >> 8;
            if !(0..PROBES).any(|probe| taken.insert(ports.candidate(hash, first.wrapping_add(probe)))) {
                refused.push(session);
            }
        }
        println!(
            "{} of 15,000 sessions found no port, the first was number {:?}",
            refused.len(),
            refused.first()
        );
        assert!(refused.iter().all(|session| *session > 9_000), "{refused:?}");
        assert!(refused.len() < 100, "{}", refused.len());
    }

    #[test]
    fn candidates_are_all_different() {
        for count in [16, 17, 100, 20_000] {
            let ports = Ports { first: 40_000, last: 40_000 + count - 1 };
            for session in 0..1000 {
                let hash = Owner::session(42, session).hash();
                let found: std::collections::BTreeSet<u16> =
                    (0..PROBES).map(|probe| ports.candidate(hash, probe)).collect();
                assert_eq!(found.len(), 16, "{count} ports, session {session}: {found:?}");
            }
        }
    }

    /// This also holds for sessions whose Maglev positions belong to one backend.
    #[test]
    fn every_port_is_somebodys() {
        let ports = Ports { first: 40_000, last: 40_099 };
        let of_one_backend = (0..100_000_u64).filter(|session| crate::balance::position(*session) < 1000);
        let mut owners = std::collections::BTreeMap::<u16, u32>::new();
        for (session, probe) in of_one_backend.zip(0_u32..) {
            *owners.entry(ports.candidate(Owner::session(42, session).hash(), probe)).or_default() += 1;
        }
        assert_eq!(owners.len(), 100);
        let (least, most) = (owners.values().min(), owners.values().max());
        assert!(least > Some(&20) && most < Some(&120), "61 expected at each, found {least:?}..{most:?}");
    }

    #[test]
    fn owners_have_ports_of_their_own() {
        let hashes = [
            Owner::session(42, 7).hash(),
            Owner::session(43, 7).hash(),
            Owner::session(42, 8).hash(),
            Owner::source(42, 7).hash(),
        ];
        assert_eq!(hashes.iter().collect::<std::collections::BTreeSet<_>>().len(), hashes.len());
        assert!(!Owner::session(42, 7).is(&Owner::source(42, 7)));
    }

    #[test]
    fn ports_end_where_they_say() {
        let ports = Ports { first: 10_000, last: 29_999 };
        for (port, among) in [(0, false), (9_999, false), (10_000, true), (29_999, true), (30_000, false)] {
            assert_eq!(ports.contain(port), among, "{port}");
        }
        assert_eq!(Ports::from_word(0), None, "no translation");
    }

    /// RFC 4787 REQ-5.
    #[test]
    fn a_translation_lasts_five_minutes() {
        assert_eq!(TIMEOUT_NS, 5 * 60 * 1_000_000_000);
    }
}
