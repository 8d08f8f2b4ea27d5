//! Services in the XDP program, and the table that maps addresses and ports to services.

use crate::{forward::Forward, token::Kind};

/// The address and port of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct ServiceKey {
    /// The address in network byte order; an IPv4 address is v4-mapped (RFC 4291 §2.5.5.2).
    pub address_be: [u32; 4],
    /// The UDP port in network byte order; 0: the address entry.
    ///
    /// Each service has an address entry in addition to its own entry. It matches packets to the service's address
    /// whose port cannot be read, so that they are refused and do not bypass the filter.
    pub port_be: u32,
}

impl ServiceKey {
    /// The key of an IPv4 service. Both arguments are in network byte order.
    #[inline(always)]
    pub const fn v4(address_be: u32, port_be: u16) -> Self {
        Self { address_be: [0, 0, 0xffff_u32.to_be(), address_be], port_be: port_be as u32 }
    }

    /// The key of an IPv6 service. Both arguments are in network byte order.
    #[inline(always)]
    pub const fn v6(address_be: [u32; 4], port_be: u16) -> Self {
        Self { address_be, port_be: port_be as u32 }
    }

    /// The bucket of this key in the service table.
    ///
    /// The hash need not resist attackers: the table contains only configured services, and the daemon picks a seed
    /// with which no bucket overflows.
    #[inline(always)]
    pub const fn bucket(&self, seed: u32) -> u32 {
        let [a, b, c, d] = self.address_be;
        let mixed =
            (a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d) as u64 | ((self.port_be ^ seed) as u64) << 32;
        // Fibonacci hashing (Knuth, TAOCP 3, §6.4).
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKETS.ilog2())) as u32
    }

    /// Whether two keys are equal, compared word by word: BPF has no `memcmp`.
    #[inline(always)]
    pub const fn is(&self, other: &Self) -> bool {
        let (a, b) = (&self.address_be, &other.address_be);
        a[3] == b[3] && self.port_be == other.port_be && a[0] == b[0] && a[1] == b[1] && a[2] == b[2]
    }
}

/// A service in the XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// The service id in its tokens.
    pub id: u32,
    /// Its index on this node: in the counters, the Maglev tables and the map `pinned`. At least 1; 0: an unused entry.
    pub index: u32,
    /// The maximum lifetime of a token, in seconds.
    pub max_ttl: u32,
    /// Tokens issued before this time (Unix seconds) are revoked; 0: none.
    pub revoked_before: u32,
    /// Accepted token types: `ACCEPT_*`.
    pub accept: u8,
    /// `BIND_*`.
    pub bind: u8,
    /// The code of a [`Forward`].
    pub forward: u8,
    /// `FLAG_*`.
    pub flags: u8,
    /// The number of source addresses that a token may be used from, at most
    /// [`SOURCES_MAX`](crate::session::SOURCES_MAX); 0: any number.
    pub max_sources: u8,
    /// Zeros.
    pub reserved: [u8; 3],
}

/// The number of buckets in one bank of the service table.
pub const BUCKETS: u32 = 512;
/// The number of entries in a bucket.
pub const BUCKET_LEN: usize = 4;

/// An entry of the service table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceEntry {
    /// The address and port of the service.
    pub key: ServiceKey,
    /// The service.
    pub service: Service,
}

/// A bucket of the service table, filled from the front.
pub type ServiceBucket = [ServiceEntry; BUCKET_LEN];

const _: () = {
    assert!(size_of::<ServiceEntry>() == 44 && align_of::<ServiceEntry>() == 4);
    assert!(size_of::<ServiceKey>() == 20 && align_of::<ServiceKey>() == 4);
    assert!(size_of::<Service>() == 24 && align_of::<Service>() == 4);
    assert!(core::mem::offset_of!(Service, accept) == 16);
};
crate::map_value!(ServiceKey, Service, ServiceEntry);

/// BEARER tokens are accepted.
pub const ACCEPT_BEARER: u8 = 1 << 0;
/// PROOF tokens are accepted.
pub const ACCEPT_PROOF: u8 = 1 << 1;

/// Tokens need not be bound to an address.
pub const BIND_OPTIONAL: u8 = 0;
/// Tokens must be bound to an address.
pub const BIND_REQUIRED: u8 = 1;

/// [`Forward::Local`].
pub const FORWARD_LOCAL: u8 = Forward::Local.code();
/// [`Forward::L2`].
pub const FORWARD_L2: u8 = Forward::L2.code();
/// [`Forward::Ipip`].
pub const FORWARD_IPIP: u8 = Forward::Ipip.code();
/// [`Forward::Gue`].
pub const FORWARD_GUE: u8 = Forward::Gue.code();
/// [`Forward::Nat`].
pub const FORWARD_NAT: u8 = Forward::Nat.code();

/// The token header is removed.
pub const FLAG_STRIP: u8 = 1 << 0;
/// `mode = "observe"`.
pub const FLAG_OBSERVE: u8 = 1 << 1;
/// At least one class of its sessions has a rate limit.
pub const FLAG_RATED: u8 = 1 << 2;

impl Service {
    /// Whether the token header is removed before the datagram is delivered.
    #[inline(always)]
    pub const fn strips(&self) -> bool {
        self.flags & FLAG_STRIP != 0
    }

    /// Whether packets that would be refused are delivered.
    #[inline(always)]
    pub const fn observes(&self) -> bool {
        self.flags & FLAG_OBSERVE != 0
    }

    /// Whether its sessions with tokens of this type keep state between packets: a replay window or limits.
    #[inline(always)]
    pub const fn is_stateful(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Proof) || self.flags & FLAG_RATED != 0 || self.max_sources != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random keys (splitmix64, Steele et al., OOPSLA 2014).
    fn keys() -> impl Iterator<Item = ServiceKey> {
        let mut seed = 1_u64;
        let mut random = move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (z ^ (z >> 27)) as u32
        };
        (0..400).map(move |_| ServiceKey {
            address_be: [random(), random(), random(), random()],
            port_be: random() & 0xffff,
        })
    }

    fn flipped(key: &ServiceKey, bit: usize) -> ServiceKey {
        let mut other = *key;
        match other.address_be.get_mut(bit / 32) {
            Some(word) => *word ^= 1 << (bit % 32),
            None => other.port_be ^= 1 << (bit % 32),
        }
        other
    }

    #[test]
    fn a_key_is_itself_and_no_other() {
        for key in keys().take(20) {
            assert!(key.is(&key));
            for bit in 0..4 * 32 + 16 {
                assert!(!key.is(&flipped(&key, bit)) && !flipped(&key, bit).is(&key), "bit {bit}");
            }
        }
    }

    /// For any two services, there must be a seed that puts them into different buckets. A change of one bit moves
    /// nearly all keys.
    #[test]
    fn every_bit_of_a_key_and_of_the_seed_moves_it() {
        const SEED: u32 = 0x5bd1_e995;
        let moved = |other: &dyn Fn(&ServiceKey) -> u32| {
            let at = keys().map(|key| (key.bucket(SEED), other(&key)));
            at.inspect(|(a, b)| assert!(*a < BUCKETS && *b < BUCKETS)).filter(|(a, b)| a != b).count()
        };
        for bit in 0..4 * 32 + 16 {
            let moved = moved(&|key| flipped(key, bit).bucket(SEED));
            assert!(moved > 380, "bit {bit} moves {moved} of 400 keys");
        }
        for bit in 0..32 {
            let moved = moved(&|key| key.bucket(SEED ^ 1 << bit));
            assert!(moved > 380, "bit {bit} of the seed moves {moved} of 400 keys");
        }
    }

    #[test]
    fn services_fill_all_buckets() {
        let mut hits = vec![0_u32; BUCKETS as usize];
        for host in 0..=255 {
            for port in 1000..1256_u16 {
                let key = ServiceKey::v4(u32::from_ne_bytes([192, 0, 2, host]), port.to_be());
                hits[key.bucket(7) as usize] += 1;
            }
        }
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(*least > 64 && *most < 256, "128 expected in each, found {least}..{most}");
    }

    #[test]
    fn flags_are_bits_of_their_own() {
        for (flags, bits) in
            [(&[ACCEPT_BEARER, ACCEPT_PROOF][..], 2), (&[FLAG_STRIP, FLAG_OBSERVE, FLAG_RATED], 3)]
        {
            assert!(flags.iter().all(|flag| flag.is_power_of_two()));
            assert_eq!(flags.iter().fold(0, |all, flag| all | flag).count_ones(), bits);
        }
        let service = Service { flags: FLAG_OBSERVE, ..Service::default() };
        assert!(service.observes() && !service.strips() && !service.is_stateful(Kind::Bearer));
        assert!(service.is_stateful(Kind::Proof));
        let rated = Service { flags: FLAG_RATED, ..service };
        let sourced = Service { max_sources: 1, ..service };
        assert!(rated.is_stateful(Kind::Bearer) && sourced.is_stateful(Kind::Bearer) && !rated.observes());
    }
}
