//! Every outcome a packet can have: numbered for good, named as in the metrics, explained to an operator.

/// How many reasons the counters have room for. New reasons fill the gap; the maps need not change.
pub const CAPACITY: usize = 64;

macro_rules! reasons {
    ($($(#[$doc:meta])* $number:literal $variant:ident $name:literal $meaning:literal $look:literal;)+) => {
        /// The outcome of one packet, and the label it is counted under.
        ///
        /// Numbers are part of the map layout and are never given to another reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant = $number,)+
        }

        impl Reason {
            /// All of them, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The `reason` label of the metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What happened, in one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }

            /// What an operator looks at first.
            pub const fn look_first(self) -> &'static str {
                match self { $(Self::$variant => $look,)+ }
            }
        }
    };
}

reasons! {
    /// Admitted, and sent to a backend or to the host.
    0 Forwarded "forwarded" "a valid token; the packet went to its backend" "nothing";
    /// Passed on untouched.
    1 NotOurs "not_ours" "not for a service, or in a frame for another station" "nothing";
    /// Lengths that contradict each other or the frame, or an IPv6 datagram without a checksum.
    2 Malformed "malformed" "lengths in the packet contradict each other or the frame, or an IPv6 datagram has no checksum" "a broken sender, or a probe";
    /// Any IP fragment.
    3 Fragment "fragment" "an IP fragment; the token is not in every one of them" "the client's MTU: a datagram must fit one packet";
    /// IP options, extension headers, deep VLAN stacks, frames for a group of stations, what lies beyond a frame's first buffer.
    4 Unsupported "unsupported" "IP options, extension headers, more VLAN tags than two, a frame for a group of stations, or a token beyond the frame's first buffer" "the network between client and balancer";
    /// No token header.
    5 NoToken "no_token" "shorter than a token header, or another first byte" "a client that does not send tokens, or junk";
    /// A token header that no issuer makes.
    6 BadHeader "bad_header" "version, type, flags or reserved bits are not those of a version 1 token" "the issuer's version";
    /// A type or binding the service does not allow.
    7 Policy "policy" "the service does not accept this type of token, or wants it bound to an address" "`accept` and `bind` of the service";
    /// No such key.
    8 UnknownKey "unknown_key" "no key with this id is in the kernel" "`tollgate keys list`: does the issuer use an old keyset?";
    /// A key that does not verify now.
    9 InactiveKey "inactive_key" "the key does not verify now, or belongs to another service" "`tollgate keys list`: revoked, retired or staged?";
    /// Issued in the future.
    10 NotYetValid "not_yet_valid" "issued in the future" "the clocks of issuer and balancer";
    /// Past its end.
    11 Expired "expired" "past its expiry" "does the client renew its token in time?";
    /// Lives longer than the service allows.
    12 Lifetime "lifetime" "lives longer than the service's max_ttl, or ends before it begins" "the issuer's ttl against `max_ttl`";
    /// Revoked.
    13 Revoked "revoked" "the token, its session or everything of its age was revoked" "who revoked it, and why";
    /// The fast tag is wrong.
    14 BadFastTag "bad_fast_tag" "forged, damaged, or sent from an address it is not bound to" "a flood of forged headers, or clients behind a changing NAT";
    /// This CPU has no full checks left for now.
    15 HmacBudget "hmac_budget" "this CPU has made its HMACs for now" "`hmac_budget`, and who sends that many new tokens";
    /// The full tag is wrong.
    16 BadFullTag "bad_full_tag" "the fast tag is right and the full tag is not: somebody holds the fast key" "rotate the service's key";
    /// A token of another service.
    17 WrongService "wrong_service" "a token of another service" "which service the client asked the issuer for";
    /// A proof too old or too new.
    18 StaleProof "stale_proof" "the proof's time is outside the window" "the client's clock since its token was issued";
    /// The proof is wrong.
    19 BadProof "bad_proof" "the proof is wrong: a copied token, or a damaged packet" "a copied token";
    /// Seen before.
    20 Replay "replay" "this sequence number was seen before" "a copied packet, or a network that doubles";
    /// More packets than the session's class allows.
    21 RateLimited "rate_limited" "more packets than the class of the session allows" "`rate` of the service";
    /// More source addresses than a token may have.
    22 TooManySources "too_many_sources" "the token is used from more addresses than allowed" "a shared token, or `max_sources`";
    /// No usable backend.
    23 NoBackend "no_backend" "no backend that may be used" "`tollgate backends list`";
    /// Does not fit the way.
    24 TooBig "too_big" "does not fit the way to the backend" "the MTU to the backends";
    /// A helper failed where it never should.
    25 Internal "internal" "something failed that never should" "the daemon's log; please report it";
    /// A backend's answer to a client, through `forward = "nat"`.
    26 Reply "reply" "a backend's answer, sent on to its client" "nothing";
    /// An ICMP error about a session, sent on to its backend.
    27 IcmpError "icmp_error" "an ICMP error about a session's answers, sent on to its backend" "the path to the clients";
    /// No port of this node is free for another client.
    28 NatPorts "nat_ports" "no port of this node is free towards the backend" "`nat_ports`: a wider range, or more backends";
    /// Its way ends here.
    29 HopLimit "hop_limit" "its time to live or hop limit ends at this hop" "a routing loop, or a traceroute";
    /// Nobody has confirmed the clock for too long.
    30 StaleClock "stale_clock" "a new token, and nobody has confirmed the clock for over an hour" "`tollgate status`: does the daemon run, and was the wall clock set back?";
    /// The tables were written twice while the packet was handled.
    31 TablesChanged "tables_changed" "any packet, also one for no service: dropped because the tables were replaced twice while the CPU handled it" "whether the hypervisor stops this host's CPUs: `vmstat 1`, column `st`";
    /// A partial checksum that the kernel would spoil.
    32 PartialChecksum "partial_checksum" "the sender left the UDP checksum to its network card, and the interface is in generic XDP mode, which cannot forward such a packet" "`xdp_mode = \"native\"`, or `ethtool -K IFACE tx off` at the sender";
}

impl Reason {
    /// Where this reason stands among a service's counters.
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// The reason of a number, where one has it.
    pub fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }

    /// Whether `mode = "observe"` delivers a packet with this outcome all the same.
    ///
    /// What tokens and the strict parser refuse is delivered: an operator sees what `enforce` would drop while
    /// the service runs as before. What cannot be delivered, or read at all, is not.
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

    /// What operators read is what the program counts.
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

    /// What observe mode never delivers: what cannot be read, what has nowhere to go, and what is no datagram with a token.
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
