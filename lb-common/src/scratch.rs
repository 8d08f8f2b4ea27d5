//! What one CPU keeps for itself: the HMAC budget, and room for the full check of a token.

use crate::{
    flow::{Flow, FlowKey},
    live::SECOND_NS,
    nat::{FragmentKey, FragmentedAnswer, Held, Owner, Translation, TranslationKey},
    rate::{GcraState, Rate},
    revocation::RevocationKey,
    service::ServiceKey,
    session::{Seen, TokenKey, TrackedSession},
    sha256,
};

/// The per-CPU value. BPF programs have 512 bytes of stack, which SHA-256 would exceed.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Scratch {
    /// HMACs this CPU may still make.
    pub budget: Budget,
    /// ICMP messages this CPU may still send.
    pub icmp: Budget,
    /// ICMP errors with a wrong cookie that this CPU may still look at.
    pub wrong_cookies: Budget,
    /// HMACs this CPU has made.
    pub hmacs: u64,
    /// The binding of the token under its full check: its address,
    pub binding_address: u64,
    /// and its port.
    pub binding_port: u64,
    /// The entry of a token cache it becomes: its key,
    pub token: TokenKey,
    /// and its value, or what begins with that.
    pub tracked: TrackedSession,
    /// What is to be known of the datagram whose session is looked at.
    pub arrival: Arrival,
    /// The revocation that is looked for.
    pub revocation: RevocationKey,
    /// Room for SHA-256.
    pub sha256: sha256::Scratch,
    /// The packet on its way out.
    pub load: Load,
    /// What the ICMP error at hand quotes.
    pub quote: Quote,
    /// The flow that a datagram's session claims,
    pub flow: Flow,
    /// and the one that its client has.
    pub held_flow: Flow,
    /// The translation in the making: its key,
    pub translation_key: TranslationKey,
    /// The number of the reason under which `mode = "observe"` delivers a packet.
    pub observed: u32,
    /// and its value.
    pub translation: Translation,
    /// What its owner holds besides.
    pub held: Held,
    /// The fragmented answer at hand: its key,
    pub fragment_key: FragmentKey,
    /// and its value.
    pub fragment: FragmentedAnswer,
    /// The part of a datagram that is being summed.
    pub block: Block,
}

/// A datagram whose token is verified, for what its session has to say to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Arrival {
    /// Where it came from.
    pub seen: Seen,
    /// The tables that count for it, as [`Tables::to_word`](crate::live::Tables::to_word) puts them.
    pub tables: u64,
    /// Its source address, as in [`Source`](crate::token::Source).
    pub source: u64,
    /// Where its token is in the frame.
    pub token_at: u32,
    /// Where its IP header is.
    pub ip_at: u32,
    /// Bytes of its payload behind the token.
    pub payload_len: u32,
    /// 1 if it is IPv6, else 0.
    pub v6: u32,
    /// The service's id.
    pub service_id: u32,
    /// The service's index.
    pub service_index: u32,
    /// The service's `flags`, `forward` and `max_sources`.
    pub flags: u8,
    /// Likewise.
    pub forward: u8,
    /// Likewise.
    pub max_sources: u8,
    /// 1 if its token is in the cache of stateful entries, else 0.
    pub tracked: u8,
    /// Zeros.
    pub reserved: [u8; 4],
}

/// The datagram that an ICMP error quotes, from a service to a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Quote {
    /// The service it came from.
    pub from: ServiceKey,
    /// The client it was for; the service's index is to be filled in.
    pub to: FlowKey,
}

/// What is to be sent on: an IP packet in a frame. The checks hand it here to the function that sends it: the stacks of
/// both would not fit the limit, and the verifier looks at that function once, not for each way that packets come to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Load {
    /// Where its IP header begins in the frame.
    pub ip_at: u32,
    /// Bytes of it.
    pub len: u32,
    /// Bytes to be taken out behind its UDP header: the token's, or none.
    pub stripped: u32,
    /// What spreads its session over outer sources.
    pub spread: u32,
    /// Once it was too big: the longest packet that its sender may send instead.
    pub room: u32,
    /// 1 if it is IPv6, else 0.
    pub v6: u16,
    /// 1 if its transport is known and has a checksum, else 0.
    pub summed: u16,
    /// Whose it is.
    pub owner: Owner,
}

/// As many bytes of a packet as the kernel sums in one call (`MAX_BPF_STACK`, include/linux/filter.h).
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Block(pub [u64; BLOCK_LEN / 8]);

/// Bytes of a [`Block`].
pub const BLOCK_LEN: usize = 512;

impl Default for Block {
    fn default() -> Self {
        Self([0; BLOCK_LEN / 8])
    }
}

const _: () = assert!(
    size_of::<Scratch>()
        == 8 * 4
            + 16
            + 16
            + 256
            + 56
            + 16
            + 288
            + 40
            + 40
            + 32
            + 32
            + 24
            + 144
            + 16
            + 36
            + 16
            + 4
            + BLOCK_LEN
        && align_of::<Scratch>() == 8
);
crate::map_value!(Scratch);

/// A rate of a CPU's own, of which at most a tenth of a second is saved up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Budget(GcraState);

/// What one ICMP message costs of a CPU's budget: a thousand a second, as many as Linux sends in all
/// (net.ipv4.icmp_msgs_per_sec).
pub const ICMP_COST_NS: u64 = SECOND_NS / 1000;

/// What one ICMP error with a wrong cookie costs of a CPU's budget: a hundred a second. A blind sender that guesses the 16
/// bits of IPv4 then hits one live translation in eleven minutes, for each CPU of this node.
pub const WRONG_COOKIE_COST_NS: u64 = SECOND_NS / 100;

/// How much unused budget a CPU may save up.
pub const BURST_NS: u64 = SECOND_NS / 10;

impl Budget {
    /// Takes one thing that costs `cost_ns` out of the budget at `now` (kernel clock, ns); false if none is left.
    #[inline(always)]
    pub fn take(&mut self, now: u64, cost_ns: u64) -> bool {
        let rate = Rate { cost_ns, debt_ns: BURST_NS.saturating_sub(cost_ns) };
        match self.0.after(now, rate) {
            Some(state) => {
                self.0 = state;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_its_rate_and_a_burst() {
        let mut budget = Budget::default();
        let cost = SECOND_NS / 1000;
        let start = 7 * SECOND_NS;
        let at_once = (0..1000).filter(|_| budget.take(start, cost)).count();
        assert_eq!(at_once, 100, "a tenth of a second");
        let over_a_second = (0..10_000).filter(|i| budget.take(start + i * SECOND_NS / 10_000, cost)).count();
        assert!((999..=1001).contains(&over_a_second), "{over_a_second}");
    }

    /// As many messages a second as Linux sends in all.
    #[test]
    fn a_cpu_sends_a_thousand_icmp_messages_a_second() {
        let mut budget = Budget::default();
        let start = 7 * SECOND_NS;
        let sent =
            (0..100_000).filter(|i| budget.take(start + i * SECOND_NS / 100_000, ICMP_COST_NS)).count();
        assert!((1099..=1101).contains(&sent), "{sent}: a thousand, and the burst");
    }
}
