//! Flows: the session of each client. An ICMP error can embed a backend's answer to a client; the client's flow gives
//! the backend of that error.

use crate::{
    session::{Admission, TokenKey},
    token::header::FLAG_BIND_ADDR,
};

/// Key of the flows: a client of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The client's address in network byte order; an IPv4 address is v4-mapped.
    pub client_be: [u32; 4],
    /// The client's UDP port in network byte order.
    pub client_port_be: u16,
    /// The service's index on this node.
    pub service_index: u16,
}

/// The session of a client, and the token that claimed the flow for it. While that token is in use from the client's
/// address, no other session takes the flow, except by a token that is bound to the address if the first token is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The session.
    pub session_id: u64,
    /// The key of the token's entry in its cache.
    pub owner: TokenKey,
    /// The backend that the session is bound to; 0: the balancer selects the backend.
    pub backend_id: u16,
    /// 1 if the token is in the cache of stateful entries, else 0.
    pub stateful: u16,
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<FlowKey>() == 20 && align_of::<FlowKey>() == 4);
    assert!(size_of::<Flow>() == 32 && align_of::<Flow>() == 8);
};
crate::map_value!(FlowKey, Flow);

impl Flow {
    /// A flow without an owning token. Any other session may take it.
    #[inline(always)]
    pub const fn unowned(admission: &Admission) -> Self {
        let Admission { session_id, backend_id, .. } = *admission;
        let owner = TokenKey { fast_tag: 0, nonce: 0 };
        Self { session_id, owner, backend_id, stateful: 0, reserved: 0 }
    }
}

/// When the last datagram of a token arrived from the client in its cache entry, in units of 2^30 ns (about a second)
/// of the kernel's clock. Each token has its own phase, so that tokens do not all check their flows at the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Activity(u32);

/// The flag of an entry whose client's flow belongs to another session.
const CONTESTED: u32 = 1 << 31;
/// A token checks its flow once in this many units, because the flow may have been evicted from the table.
const PERIOD: u32 = 16;
/// A token is in use if it was seen in the current unit, or in this many units before it.
const IN_USE: u32 = 2;

impl Activity {
    /// The activity at a time of the kernel's clock. The low eight bits of `number`, which comes from the token, set
    /// the phase.
    #[inline(always)]
    pub const fn at(kernel_ns: u64, number: u64) -> Self {
        Self((kernel_ns.wrapping_add((number & 0xff) << 26) >> 30) as u32 & !CONTESTED)
    }

    /// Whether the token checked its flow in the period of `now`, and owned it.
    #[inline(always)]
    pub const fn is_settled(self, now: Self) -> bool {
        self.0 / PERIOD == now.0 / PERIOD
    }

    /// The same activity, for an entry whose client's flow belongs to another session. Its token tries again in the
    /// next unit.
    #[inline(always)]
    pub const fn contested(self) -> Self {
        Self(self.0 | CONTESTED)
    }

    /// Whether a token that holds a flow is in use.
    #[inline(always)]
    pub const fn is_in_use(self, now: Self) -> bool {
        now.0.wrapping_sub(self.0) <= IN_USE
    }
}

/// Whether a token is bound to the address of its client, according to the first claim in its entry. A sender that
/// spoofs a client's address has no token that is bound to that address.
#[inline(always)]
pub const fn is_bound(first_claim: u64) -> bool {
    first_claim.to_le_bytes()[2] & FLAG_BIND_ADDR != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 1 << 30;

    #[test]
    fn a_token_is_in_use_for_some_seconds() {
        for nonce in [0, 7, 255, u64::MAX] {
            let start = 1000 * UNIT + 5;
            let then = Activity::at(start, nonce);
            assert!(then.is_in_use(then) && then.is_in_use(Activity::at(start + 2 * UNIT, nonce)));
            assert!(!then.is_in_use(Activity::at(start + 3 * UNIT, nonce)), "too long ago");
            assert!(!then.is_in_use(Activity::at(start - UNIT, nonce)), "another token's entry by now");
            assert!(!then.contested().is_in_use(then), "it holds no flow");
        }
    }

    #[test]
    fn a_flow_is_looked_at_once_a_period() {
        let looks = |nonce: u64| {
            let mut before = Activity::at(0, nonce);
            let mut looks = 0;
            for unit in 0..160 {
                let now = Activity::at(unit * UNIT, nonce);
                looks += u32::from(!before.is_settled(now));
                before = now;
            }
            looks
        };
        assert!((0..256).all(|nonce| (9..=10).contains(&looks(nonce))));
        let now = Activity::at(5 * UNIT, 0);
        assert!(now.is_settled(now) && !now.contested().is_settled(now));
        // Few tokens check their flows at the same moment.
        let at_once = (0..256)
            .filter(|nonce| !Activity::at(63 * UNIT, *nonce).is_settled(Activity::at(64 * UNIT, *nonce)));
        assert!(at_once.count() <= 256 / 16 + 1);
    }

    #[test]
    fn a_bound_token_says_so() {
        assert!(is_bound(u64::from_le_bytes([0x0b, 0x11, 1, 32, 0, 0, 0, 0])));
        assert!(!is_bound(u64::from_le_bytes([0x0b, 0x11, 0, 0, 1, 1, 1, 1])));
    }
}
