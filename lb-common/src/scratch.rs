//! The per-CPU scratch of the XDP program: the budgets of this CPU, and mailboxes through which functions of the
//! program pass values to each other. Mailboxes are needed because a chain of BPF calls has 512 bytes of stack, and a
//! subprogram takes at most five arguments.

use crate::{
    control::SECOND_NS,
    flow::{Flow, FlowKey},
    nat::{FragmentKey, FragmentedAnswer, Held, Owner, Translation, TranslationKey},
    rate::{GcraState, Rate},
    revocation::RevocationKey,
    service::ServiceKey,
    session::{Seen, StatefulEntry, TokenKey},
    sha256,
    token::Source,
};

/// The per-CPU scratch. Each field has one meaning. All fields except the budgets and `hmacs` are valid for one packet.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Scratch {
    /// HMACs that this CPU may still compute.
    pub hmac_budget: Budget,
    /// ICMP messages that this CPU may still send.
    pub icmp_budget: Budget,
    /// ICMP errors with a wrong cookie that this CPU may still examine.
    pub wrong_cookie_budget: Budget,
    /// HMACs that this CPU has computed.
    pub hmacs: u64,
    /// The packet whose token is being checked.
    pub packet: PacketMetadata,
    /// The working memory and the result of an HMAC verification.
    pub verification: Verification,
    /// The key of a lookup in the revocations.
    pub revocation: RevocationKey,
    /// The flow that the session of a packet claims.
    pub flow: FlowClaim,
    /// The packet to be sent.
    pub transmit: TransmitDescriptor,
    /// The packet that an ICMP error embeds.
    pub embedded: EmbeddedPacket,
    /// A number that is stored and loaded again, so that the verifier does not know its value.
    pub hidden: u32,
    /// The translation of the packet.
    pub translation: TranslationOfPacket,
    /// The fragment of an answer.
    pub fragment: FragmentOfAnswer,
    /// The part of a datagram that is being summed.
    pub block: Block,
}

/// A packet with a token whose fast tag is right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PacketMetadata {
    /// The client, in one word.
    pub client: Seen,
    /// The tables that apply to it, as [`Tables::to_word`](crate::control::Tables::to_word) encodes them.
    pub tables: u64,
    /// Its source address, as in [`Source`].
    pub source_address: u64,
    /// The key of its token in the token cache.
    pub token: TokenKey,
    /// The offset of its token in the frame.
    pub token_at: u32,
    /// The offset of its IP header in the frame.
    pub ip_at: u32,
    /// Bytes of its payload after the token.
    pub payload_len: u32,
    /// 1 if it is IPv6, else 0.
    pub v6: u32,
    /// The service's id.
    pub service_id: u32,
    /// The service's index.
    pub service_index: u32,
    /// `flags` of the service.
    pub flags: u8,
    /// `forward` of the service.
    pub forward: u8,
    /// `max_sources` of the service.
    pub max_sources: u8,
    /// 1 if its token belongs in the cache of stateful entries, else 0.
    pub stateful: u8,
    /// Its source port, as in [`Source`].
    pub source_port: u16,
    /// Zero.
    pub reserved: u16,
}

impl PacketMetadata {
    /// Its sender.
    #[inline(always)]
    pub const fn source(&self) -> Source {
        Source { v6: self.v6 != 0, address: self.source_address, port: self.source_port }
    }
}

/// The working memory and the result of an HMAC verification.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Verification {
    /// The working memory of SHA-256.
    pub sha256: sha256::Scratch,
    /// The new entry of a token cache. The cache without state stores only its `session`.
    pub entry: StatefulEntry,
}

/// The flow that the session of a packet claims.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowClaim {
    /// The client of the service.
    pub key: FlowKey,
    /// Zero.
    pub reserved: u32,
    /// The flow that this session claims.
    pub claimed: Flow,
    /// The flow in the table.
    pub held: Flow,
}

/// The datagram from a service to a client that an ICMP error embeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EmbeddedPacket {
    /// Its source: the service.
    pub from: ServiceKey,
    /// Its destination: the client. The service's index is filled in once the service is known.
    pub to: FlowKey,
    /// The change of the ICMP checksum by the rewrite, in the form of a checksum field.
    pub checksum_change: u32,
}

/// The translation of the packet, for `forward = "nat"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TranslationOfPacket {
    /// Its key.
    pub key: TranslationKey,
    /// Zero.
    pub reserved: u32,
    /// The translation.
    pub value: Translation,
    /// The other translations of its owner.
    pub held: Held,
}

/// A fragment of a backend's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentOfAnswer {
    /// The values that it shares with the other fragments of the answer.
    pub key: FragmentKey,
    /// Zero.
    pub reserved: u32,
    /// The answer.
    pub answer: FragmentedAnswer,
}

/// An IP packet in a frame that is to be sent. The checks describe the packet here for the subprogram that sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TransmitDescriptor {
    /// The offset of its IP header in the frame.
    pub ip_at: u32,
    /// Bytes of the packet.
    pub len: u32,
    /// Bytes to remove after its UDP header: the length of the token header, or 0.
    pub stripped: u32,
    /// The hash of its session, for the source of an outer header.
    pub spread: u32,
    /// If the packet was too big: the largest packet that its sender may send instead.
    pub mtu: u32,
    /// 1 if it is IPv6, else 0.
    pub v6: u16,
    /// 1 if it is UDP or ICMP with a checksum, else 0.
    pub has_checksum: u16,
    /// The owner of its translation.
    pub owner: Owner,
}

/// The bytes of a packet that the kernel sums in one call (`MAX_BPF_STACK`, include/linux/filter.h).
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

const _: () = {
    assert!(size_of::<PacketMetadata>() == 72 && align_of::<PacketMetadata>() == 8);
    assert!(size_of::<Verification>() == 288 + 256 && align_of::<Verification>() == 8);
    assert!(size_of::<FlowClaim>() == 20 + 4 + 2 * 32 && align_of::<FlowClaim>() == 8);
    assert!(size_of::<TransmitDescriptor>() == 40 && align_of::<TransmitDescriptor>() == 8);
    assert!(size_of::<EmbeddedPacket>() == 2 * 20 + 4 && align_of::<EmbeddedPacket>() == 4);
    assert!(size_of::<TranslationOfPacket>() == 20 + 4 + 144 + 16 && align_of::<TranslationOfPacket>() == 8);
    assert!(size_of::<FragmentOfAnswer>() == 36 + 4 + 16 && align_of::<FragmentOfAnswer>() == 8);
    assert!(
        size_of::<Scratch>() == 4 * 8 + 72 + 544 + 16 + 88 + 40 + 44 + 4 + 184 + 56 + BLOCK_LEN
            && align_of::<Scratch>() == 8
    );
};
crate::map_value!(Scratch);

/// The budget of one CPU for an operation that costs time. Unused budget accumulates for at most [`BURST_NS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Budget(GcraState);

/// The cost of one ICMP message: a CPU sends at most a thousand a second, as many as Linux sends in total
/// (net.ipv4.icmp_msgs_per_sec).
pub const ICMP_COST_NS: u64 = SECOND_NS / 1000;

/// The cost of one ICMP error with a wrong cookie: a CPU examines at most a hundred a second. An off-path attacker that
/// guesses the 16 bits of an IPv4 cookie then hits one translation in eleven minutes, for each CPU of this node.
pub const WRONG_COOKIE_COST_NS: u64 = SECOND_NS / 100;

/// The maximum of unused budget.
pub const BURST_NS: u64 = SECOND_NS / 10;

impl Budget {
    /// Takes `cost_ns` out of the budget at `now` (kernel clock, ns); false if less is left.
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

    /// The limit of one CPU equals the total limit of Linux.
    #[test]
    fn a_cpu_sends_a_thousand_icmp_messages_a_second() {
        let mut budget = Budget::default();
        let start = 7 * SECOND_NS;
        let sent =
            (0..100_000).filter(|i| budget.take(start + i * SECOND_NS / 100_000, ICMP_COST_NS)).count();
        assert!((1099..=1101).contains(&sent), "{sent}: a thousand, and the burst");
    }
}
