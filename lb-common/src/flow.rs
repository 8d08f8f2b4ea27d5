//! The session of a client: it ties an ICMP error, which carries a backend's answer to the client, to a backend.

use crate::{
    session::{Admission, TokenKey},
    token::header::FLAG_BIND_ADDR,
};

/// Key of the flows: a client of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// The client's address as its wire bytes lie in memory, an IPv4 address v4-mapped.
    pub client_be: [u32; 4],
    /// The client's UDP port as its wire bytes lie in memory.
    pub client_port_be: u16,
    /// The service's index on this node.
    pub service_index: u16,
}

/// The session of a client, and the token by which it came to be that: as long as the token is in use from the client's
/// address, no other session takes the flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// The session.
    pub session_id: u64,
    /// The token's entry in its cache.
    pub owner: TokenKey,
    /// The backend that the session is bound to; 0: the balancer chooses.
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
    /// Of a session, whose token is not named: any other session may take it.
    #[inline(always)]
    pub const fn unowned(admission: &Admission) -> Self {
        let Admission { session_id, backend_id, .. } = *admission;
        let owner = TokenKey { fast_tag: 0, nonce: 0 };
        Self { session_id, owner, backend_id, stateful: 0, reserved: 0 }
    }
}

/// When a token's last datagram came from the client that its cache entry names, in units of 2^30 ns of the kernel's
/// clock: about a second. Each token counts with a phase of its own, so that not all look at their flows at the same
/// moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Activity(u32);

/// In an entry whose client's flow is another session's.
const CONTESTED: u32 = 1 << 31;
/// Units in which a token looks at its flow once: it may have been pushed out of the table.
const PERIOD: u32 = 16;
/// A token that sent something in this unit or in so many before is in use.
const IN_USE: u32 = 2;

impl Activity {
    /// At a moment of the kernel's clock, of a token with this number, of which eight bits count.
    #[inline(always)]
    pub const fn at(kernel_ns: u64, number: u64) -> Self {
        Self((kernel_ns.wrapping_add((number & 0xff) << 26) >> 30) as u32 & !CONTESTED)
    }

    /// Whether the flow was looked at, and found to be its own, in the period of `now`.
    #[inline(always)]
    pub const fn is_settled(self, now: Self) -> bool {
        self.0 / PERIOD == now.0 / PERIOD
    }

    /// The same for an entry whose client's flow is another session's, which tries again in the next unit.
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

/// Whether a token is bound to the address of its client, by the first claim that its entry keeps: what a stranger
/// sends with a token of his own is not.
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
        // At one moment, few of all tokens do.
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
