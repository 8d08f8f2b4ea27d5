//! Forwarding modes: how a datagram reaches its backend. Each mode is one entry of `modes!`.

use core::net::IpAddr;

/// The combinations of address families that a mode supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// The backend's address is not used.
    Unused,
    /// The backend's family must be the service's.
    Same,
    /// The service's family, and IPv6 backends for IPv4 services. (IPv6 in IPv4 is not implemented.)
    SameOrIpv4InIpv6,
}

macro_rules! modes {
    ($($(#[doc = $doc:literal])+ $code:literal $variant:ident $name:literal {
        encapsulates: $encapsulates:literal,
        has_own_source: $has_own_source:literal,
        families: $families:ident,
        strip: $strip:literal,
    })+) => {
        /// A forwarding mode: `forward` of a service.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Forward {
            $($(#[doc = $doc])+ $variant = $code,)+
        }

        impl Forward {
            /// All modes, by code.
            pub const ALL: [Self; [$($code),+].len()] = [$(Self::$variant),+];

            /// The value of `forward` in the configuration.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// How the datagram reaches the backend, in one sentence of Markdown.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// Whether the packet is encapsulated in another packet.
            pub const fn encapsulates(self) -> bool {
                match self { $(Self::$variant => $encapsulates,)+ }
            }

            /// Whether the packet that the backend's host receives has a source address of this node, not the client's.
            pub const fn has_own_source(self) -> bool {
                match self { $(Self::$variant => $has_own_source,)+ }
            }

            /// The combinations of service and backend address families that the mode supports.
            pub const fn families(self) -> Families {
                match self { $(Self::$variant => Families::$families,)+ }
            }

            /// The packet from which `strip` removes the token header, in Markdown.
            pub const fn strips(self) -> &'static str {
                match self { $(Self::$variant => $strip,)+ }
            }
        }
    };
}

modes! {
    /// To this host's own network stack.
    0 Local "local" {
        encapsulates: false,
        has_own_source: false,
        families: Unused,
        strip: "the datagram that this host's socket receives",
    }
    /// With new MAC addresses, to a backend on the same network segment. The backend has the service's address, and
    /// replies to clients directly (direct server return).
    1 L2 "l2" {
        encapsulates: false,
        has_own_source: false,
        families: Same,
        strip: "the datagram",
    }
    /// Inside an IP packet to the backend's address (RFC 2003, RFC 2473). The backend replies to clients directly.
    2 Ipip "ipip" {
        encapsulates: true,
        has_own_source: true,
        families: SameOrIpv4InIpv6,
        strip: "the inner datagram",
    }
    /// Inside a UDP datagram to the backend's address (Generic UDP Encapsulation, variant 1). The backend replies to
    /// clients directly.
    3 Gue "gue" {
        encapsulates: true,
        has_own_source: true,
        families: SameOrIpv4InIpv6,
        strip: "the inner datagram",
    }
    /// With the backend's address and port as destination, and an address and port of this node as source. Replies
    /// return through this node.
    4 Nat "nat" {
        encapsulates: false,
        has_own_source: true,
        families: Same,
        strip: "the datagram; replies are not changed",
    }
}

impl Forward {
    /// Its number in the service table.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether packets to a service with address `service` can reach a backend with address `backend`.
    pub const fn reaches(self, service: IpAddr, backend: IpAddr) -> bool {
        match self.families() {
            Families::Unused => true,
            Families::Same => service.is_ipv4() == backend.is_ipv4(),
            Families::SameOrIpv4InIpv6 => service.is_ipv4() || backend.is_ipv6(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_positions() {
        assert!(Forward::ALL.iter().enumerate().all(|(position, mode)| usize::from(mode.code()) == position));
    }

    #[test]
    fn the_page_for_operators_has_each() {
        let page = include_str!("../../docs/operations.md");
        for mode in Forward::ALL {
            let families = match mode.families() {
                Families::Unused => "any",
                Families::Same => "the service's",
                Families::SameOrIpv4InIpv6 => "the service's, or IPv6",
            };
            let row = format!("| `{}` | {} | {families} | {} |", mode.name(), mode.meaning(), mode.strips());
            assert!(page.contains(&row), "docs/operations.md lacks this row:\n{row}");
        }
    }
}
