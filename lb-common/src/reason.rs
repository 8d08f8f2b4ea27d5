//! The reasons under which packets are counted. Each has a permanent number, a label in the metrics and an explanation.

use core::num::NonZeroU32;

/// The number of counters per service, one for each reason. New reasons use spare counters, so the map layout stays the
/// same.
pub const CAPACITY: usize = 64;

macro_rules! reasons {
    ($($(#[$doc:meta])* $number:literal $variant:ident $name:literal $meaning:literal $look:literal;)+) => {
        /// The outcome of a packet, and the label under which it is counted.
        ///
        /// Numbers are part of the map layout, and are never reused for another reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Reason {
            /// All reasons, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The `reason` label of the metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// A one-sentence explanation.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }

            /// The first thing for an operator to check.
            pub const fn look_first(self) -> &'static str {
                match self { $(Self::$variant => $look,)+ }
            }
        }
    };
}

reasons! {
    /// Admitted, and sent to a backend or to this host's network stack.
    0 Forwarded "forwarded"
        "the token is valid, and the packet was sent to its backend, or to this host's network stack (`local`)"
        "nothing";
    /// Not for a service, or in a frame for another station.
    1 NotOurs "not_ours"
        "the packet is not for a service (it passes unchanged), or its frame is for another station"
        "nothing";
    /// Lengths that contradict each other or the frame, or an IPv6 datagram without a checksum.
    2 Malformed "malformed"
        "lengths in the packet contradict each other or the frame, or an IPv6 datagram has no UDP checksum"
        "faulty senders, or a scan";
    /// Any IP fragment.
    3 Fragment "fragment"
        "an IP fragment: only the first fragment of a datagram contains its token"
        "the size of the clients' datagrams: each must fit into one packet";
    /// IP options, extension headers, too many VLAN tags, a broadcast or multicast frame, or a token beyond the frame's
    /// first buffer.
    4 Unsupported "unsupported"
        "IP options, IPv6 extension headers, more than two VLAN tags, a broadcast or multicast frame, or a token \
         header that is not in the frame's first buffer"
        "the network between clients and balancer";
    /// No token header.
    5 NoToken "no_token"
        "the payload is shorter than a token header, or begins with another byte"
        "clients that do not send tokens, or junk";
    /// The token header is not a valid version 1 header.
    6 BadHeader "bad_header"
        "the version, type, flags, `bind_len` or reserved byte is invalid in a version 1 token"
        "the issuer's version";
    /// The service does not accept the type or the binding of the token.
    7 Policy "policy"
        "the service does not accept this token type, or requires a token that is bound to an address"
        "`accept` and `bind` of the service";
    /// The key id is unknown.
    8 UnknownKey "unknown_key"
        "the kernel has no key with the token's key ID"
        "`tollgate keys list`: does the issuer use an old keyset?";
    /// The key is revoked, outside its validity, or of another service.
    9 InactiveKey "inactive_key"
        "the token's key is revoked or past its end, or belongs to another service"
        "`tollgate keys list`: the state and the service of the key";
    /// The token was issued in the future.
    10 NotYetValid "not_yet_valid" "the token's issue time is in the future" "the clocks of issuer and balancer";
    /// The token has expired.
    11 Expired "expired" "the token has expired" "the clients: do they renew their tokens in time?";
    /// The lifetime of the token is too long.
    12 Lifetime "lifetime"
        "the token's lifetime exceeds the service's `max_ttl`, or the token expires before its issue time"
        "the issuer's TTL, and `max_ttl`";
    /// The token or its session is revoked.
    13 Revoked "revoked"
        "the token, its session, or everything that the service issued before a certain time is revoked"
        "the daemon's log: who revoked it?";
    /// The fast tag is wrong.
    14 BadFastTag "bad_fast_tag"
        "the token is forged or damaged, or is bound to another address or port"
        "a flood of forged headers, or a NAT that changes the addresses of clients";
    /// This CPU has used up its budget of HMAC verifications.
    15 HmacBudget "hmac_budget"
        "the token is not in the token cache, and this CPU has used up its HMAC verifications"
        "`hmac_budget`, and who sends so many new tokens";
    /// The full tag is wrong.
    16 BadFullTag "bad_full_tag"
        "the fast tag is valid, but the full tag is not: the sender has the fast key"
        "a leaked keyset: rotate the service's key";
    /// The token names another service.
    17 WrongService "wrong_service"
        "the token is signed with a key of this service, but names another service"
        "the service ID that the issuer writes into its tokens";
    /// The time of the proof is too old or too new.
    18 StaleProof "stale_proof"
        "the proof's time differs from the balancer's time by more than 5 s"
        "the client's clock since its token was issued";
    /// The proof is wrong.
    19 BadProof "bad_proof"
        "the proof is wrong: the token was copied, or the packet was damaged"
        "senders with a copied token";
    /// The sequence number was used before, or is below the replay window.
    20 Replay "replay"
        "the sequence number was used before, or is 512 or more below the highest one"
        "copied packets, or a network that duplicates packets";
    /// More packets than the session's class allows.
    21 RateLimited "rate_limited"
        "the session sends more packets than the rate of its class allows"
        "`rate` of the service";
    /// More source addresses than a token may have.
    22 TooManySources "too_many_sources"
        "the token is used from more addresses than `max_sources` allows"
        "a shared token, or `max_sources`";
    /// No usable backend.
    23 NoBackend "no_backend"
        "the service has no usable backend, or the backend that the token names is not usable"
        "`tollgate backends list`";
    /// The packet exceeds the MTU of the path to the backend.
    24 TooBig "too_big" "the packet exceeds the MTU of the path to the backend" "the MTU of the links to the backends";
    /// A kernel helper failed unexpectedly.
    25 Internal "internal"
        "a step of the XDP program that should never fail has failed"
        "the daemon's log; please report it";
    /// A backend's answer to a client, through `forward = "nat"`.
    26 Reply "reply" "a backend's reply through `nat`, sent to its client" "nothing";
    /// An ICMP error about a session, forwarded to its backend or client.
    27 IcmpError "icmp_error"
        "an ICMP error about packets of a session, forwarded to the session's backend or client"
        "the path between clients and backends";
    /// No port of this node is free for this client and backend.
    28 NatPorts "nat_ports"
        "`nat` has no free port of this node for this client and backend"
        "`nat_ports`: use a wider range, or more backends";
    /// The TTL or hop limit ends at this hop.
    29 HopLimit "hop_limit"
        "the packet must be routed, but its TTL or hop limit ends at this hop"
        "a routing loop, or a traceroute";
    /// The daemon has not confirmed the clock for too long.
    30 StaleClock "stale_clock"
        "the token is not in the token cache, and the daemon has not confirmed the clock for more than 4000 s"
        "`tollgate status`: does the daemon run, and was the wall clock set back?";
    /// The daemon replaced the tables twice while the packet was processed.
    31 TablesChanged "tables_changed"
        "the daemon replaced the tables twice while the CPU handled the packet, which may be for no service"
        "CPUs that the hypervisor stops: `vmstat 1`, column `st`";
    /// A partial UDP checksum that the kernel would corrupt in generic mode.
    32 PartialChecksum "partial_checksum"
        "the sender left the UDP checksum to its network card, and the receiving interface is in generic XDP mode, \
         which cannot forward such a packet"
        "`xdp_mode = \"native\"`, or `ethtool -K IFACE tx off` on the sender";
}

impl Reason {
    /// The index of this reason among the counters of a service.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The reason with a number; `None` if no reason has it.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }

    /// Whether `mode = "observe"` delivers a packet with this outcome.
    ///
    /// Packets that the token checks or the strict parser refuse are delivered, so an operator can see which packets
    /// `enforce` would drop while the service runs unchanged. Packets that cannot be delivered or parsed are not.
    pub const fn delivered_in_observe(self) -> bool {
        match self {
            Self::Fragment
            | Self::Unsupported
            | Self::NoToken
            | Self::BadHeader
            | Self::Policy
            | Self::UnknownKey
            | Self::InactiveKey
            | Self::NotYetValid
            | Self::Expired
            | Self::Lifetime
            | Self::Revoked
            | Self::BadFastTag
            | Self::HmacBudget
            | Self::StaleClock
            | Self::BadFullTag
            | Self::WrongService
            | Self::StaleProof
            | Self::BadProof
            | Self::Replay
            | Self::RateLimited
            | Self::TooManySources => true,
            Self::Forwarded
            | Self::NotOurs
            | Self::Malformed
            | Self::NoBackend
            | Self::TooBig
            | Self::Internal
            | Self::Reply
            | Self::IcmpError
            | Self::NatPorts
            | Self::HopLimit
            | Self::TablesChanged
            | Self::PartialChecksum => false,
        }
    }
}

const _: () = assert!(Reason::ALL.len() <= CAPACITY);

/// The form of a [`Reason`] in the XDP program: 1 + its number.
///
/// BPF subprograms return numbers, whose range the verifier does not know. To convert such a number to an enum would be
/// unsound, and is not needed, because the number is the index of the counter. Therefore every reason, including a new
/// one, can pass through every subprogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct ReasonCode(NonZeroU32);

impl From<Reason> for ReasonCode {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        // Never saturates: the number is below the capacity.
        Self(NonZeroU32::MIN.saturating_add(reason.index()))
    }
}

impl ReasonCode {
    /// The code for a number that a subprogram returned; `None` for 0, which means success.
    #[inline(always)]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number that a subprogram returns, 1..=[`CAPACITY`].
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// As [`Reason::index`].
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0.get() - 1
    }

    /// Whether it is the code of this reason.
    #[inline(always)]
    pub const fn is(self, reason: Reason) -> bool {
        self.index() == reason.index()
    }

    /// As [`Reason::delivered_in_observe`].
    #[inline(always)]
    pub const fn delivered_in_observe(self) -> bool {
        DELIVERED_IN_OBSERVE >> (self.index() % CAPACITY as u32) & 1 != 0
    }
}

/// A bit for each reason: see [`Reason::delivered_in_observe`].
const DELIVERED_IN_OBSERVE: u64 = {
    let mut bits = 0;
    let mut at = 0;
    while at < Reason::ALL.len() {
        bits |= (Reason::ALL[at].delivered_in_observe() as u64) << Reason::ALL[at].index();
        at += 1;
    }
    bits
};
const _: () = assert!(CAPACITY == u64::BITS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index() as usize, position, "{}", reason.name());
            assert_eq!(Reason::from_index(reason.index()), Some(*reason));
        }
        assert_eq!(Reason::from_index(u32::try_from(Reason::ALL.len()).unwrap()), None);
    }

    #[test]
    fn a_code_is_its_reason_and_no_other() {
        for reason in Reason::ALL {
            let code = ReasonCode::from(*reason);
            assert_eq!(code.index(), reason.index());
            assert_eq!(ReasonCode::new(code.number()), Some(code));
            assert_eq!(code.delivered_in_observe(), reason.delivered_in_observe(), "{}", reason.name());
            for other in Reason::ALL {
                assert_eq!(code.is(*other), reason == other, "{} {}", reason.name(), other.name());
            }
        }
        assert_eq!(ReasonCode::new(0), None, "success");
    }

    /// The page for operators documents every reason that the program counts.
    #[test]
    fn the_page_for_operators_has_each() {
        let page = include_str!("../../docs/operations.md");
        for reason in Reason::ALL {
            let row = format!("| `{}` | {} | {} |", reason.name(), reason.meaning(), reason.look_first());
            assert!(page.contains(&row), "docs/operations.md lacks this row:\n{row}");
        }
    }

    #[test]
    fn names_are_unique_labels() {
        let names: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        assert!(names.iter().all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
    }

    /// Observe mode never delivers packets that cannot be parsed, that have no destination, or that are not datagrams
    /// with a token.
    #[test]
    fn observe_mode_delivers_what_only_enforce_refuses() {
        let refused = [
            Reason::Forwarded,
            Reason::NotOurs,
            Reason::Malformed,
            Reason::NoBackend,
            Reason::TooBig,
            Reason::Internal,
            Reason::Reply,
            Reason::IcmpError,
            Reason::NatPorts,
            Reason::HopLimit,
            Reason::TablesChanged,
            Reason::PartialChecksum,
        ];
        assert!(refused.iter().all(|reason| !reason.delivered_in_observe()));
        let delivered =
            [Reason::NoToken, Reason::BadFastTag, Reason::Expired, Reason::Revoked, Reason::RateLimited];
        assert!(delivered.iter().all(|reason| reason.delivered_in_observe()));
    }
}
