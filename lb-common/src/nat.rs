//! Translations of `forward = "nat"`: which client a port of this node stands for, towards one backend.
//!
//! There is one table, read both ways. A client's port follows from its address by a hash and a few probes, so that its
//! datagrams find their translation without a second table, and every port serves every backend.

use crate::{backend::Tag, live::SECOND_NS};

/// Key of the translations: the addresses of a backend's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TranslationKey {
    /// The backend's address as its wire bytes lie in memory, an IPv4 address v4-mapped.
    pub backend_be: [u32; 4],
    /// The backend's UDP port as its wire bytes lie in memory.
    pub backend_port_be: u16,
    /// This node's UDP port, likewise.
    pub node_port_be: u16,
}

/// Who is behind a port of this node, and the way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Translation {
    /// When the client's last datagram passed, by the kernel's clock, nanoseconds.
    pub used_at_ns: u64,
    /// The client's address, v4-mapped.
    pub client_be: [u32; 4],
    /// The address that the client sent to.
    pub service_be: [u32; 4],
    /// This node's address, from which the backend got it.
    pub node_be: [u32; 4],
    /// The client's UDP port.
    pub client_port_be: u16,
    /// The UDP port that the client sent to.
    pub service_port_be: u16,
    /// The service's index on this node.
    pub service_index: u16,
    /// VLAN tags of the client's frames: at most two.
    pub tag_count: u16,
    /// The interface that the client's datagrams come in on.
    pub ifindex: u32,
    /// How frames to the client begin: the MAC address that its datagrams come from, and the one that they come to.
    pub addresses_be: [u32; 3],
    /// Their tags, the outermost first.
    pub tags: [Tag; 2],
    /// The service's id.
    pub service_id: u32,
    /// The interface that leads to the backend: answers from elsewhere are forged.
    pub backend_ifindex: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<TranslationKey>() == 20 && align_of::<TranslationKey>() == 4);
    assert!(size_of::<Translation>() == 104 && align_of::<Translation>() == 8);
    assert!(core::mem::offset_of!(Translation, tags) == 80);
};
crate::map_value!(TranslationKey, Translation);

/// How long a translation lasts after its client's last datagram (RFC 4787 REQ-5 recommends five minutes). Only the
/// client's datagrams, which carry tokens, prolong it (REQ-6 allows that).
pub const TIMEOUT_NS: u64 = 300 * SECOND_NS;

/// Ports that are tried for a client before its datagram is dropped. With half of all ports taken, one client in 65,000
/// finds none; with three quarters, one in a hundred.
pub const PROBES: u32 = 16;

/// The UDP ports that are kept for translations, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl Ports {
    /// From the word that the program is loaded with; `None` where there is no translation.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Option<Self> {
        match word {
            0 => None,
            _ => Some(Self { first: (word >> 16) as u16, last: word as u16 }),
        }
    }

    /// As the word that the program is loaded with.
    pub const fn to_word(self) -> u32 {
        (self.first as u32) << 16 | self.last as u32
    }

    /// Whether a port is among them.
    #[inline(always)]
    pub const fn contain(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The port that a client with this hash gets at a probe. Each client has a step of its own, so that taken ports do not
    /// gather (double hashing: Knuth, TAOCP 3, §6.4).
    #[inline(always)]
    pub const fn candidate(self, hash: u64, probe: u32) -> u16 {
        let count = self.last as u64 - self.first as u64 + 1;
        let (start, step) = (hash as u32, (hash >> 32) as u32 | 1);
        // Lemire's fast range.
        self.first + ((start.wrapping_add(step.wrapping_mul(probe)) as u64 * count) >> 32) as u16
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

    /// Clients with random hashes, each at its first free port, until half and three quarters of the ports are taken.
    #[test]
    fn few_find_no_port() {
        let ports = Ports { first: 40_000, last: 59_999 };
        let mut taken = std::collections::BTreeSet::new();
        let mut hash = 1_u64;
        let mut refused = Vec::new();
        for client in 1..=15_000 {
            hash = hash.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let mixed = (hash ^ hash >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if !(0..PROBES).any(|probe| taken.insert(ports.candidate(mixed ^ mixed >> 29, probe))) {
                refused.push(client);
            }
        }
        println!(
            "{} of 15,000 clients found no port, the first was number {:?}",
            refused.len(),
            refused.first()
        );
        assert!(refused.iter().all(|client| *client > 9_000), "{refused:?}");
        assert!(refused.len() < 100, "{}", refused.len());
    }

    #[test]
    fn every_port_is_somebodys_first() {
        let ports = Ports { first: 40_000, last: 40_099 };
        let found: std::collections::BTreeSet<u16> =
            (0..10_000u64).map(|i| ports.candidate(i.wrapping_mul(0x9e37_79b9), 0)).collect();
        assert_eq!(found.len(), 100);
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
