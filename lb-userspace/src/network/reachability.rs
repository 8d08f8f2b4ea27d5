//! Whether a backend may be used, as a node sees it.

use std::{fmt, net::IpAddr};

/// What the daemon knows of the way to a backend. Only one that is up gets sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Its MAC address is known and it is reached through an interface of the program.
    Up,
    /// Nothing is known yet: the neighbour is being asked for.
    Resolving,
    /// It, or the router before it, does not answer ARP or neighbour discovery.
    NoNeighbour {
        /// Who does not answer.
        address: IpAddr,
        /// Whether that is a router.
        router: bool,
        /// Where it is asked for.
        interface: String,
    },
    /// There is no route to it.
    NoRoute,
    /// The interface that leads to it is down or has no carrier.
    LinkDown {
        /// That interface.
        interface: String,
    },
    /// It is reached through a router: l2 can only send to the same segment.
    BehindRouter {
        /// The router.
        gateway: IpAddr,
    },
    /// It is reached through an interface that frames cannot be sent to.
    WrongInterface {
        /// That interface.
        interface: String,
        /// Why, and what would be right.
        cause: String,
    },
    /// This host has no address that packets could come from.
    NoSource {
        /// Where it needs one.
        interface: String,
    },
}

impl BackendState {
    /// Whether it gets sessions.
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up)
    }

    /// One word, as in lists.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Resolving => "resolving",
            Self::NoNeighbour { .. } => "no-neighbour",
            Self::NoRoute => "no-route",
            Self::LinkDown { .. } => "link-down",
            Self::BehindRouter { .. } => "behind-router",
            Self::WrongInterface { .. } => "wrong-interface",
            Self::NoSource { .. } => "no-source",
        }
    }
}

impl fmt::Display for BackendState {
    /// The reason, and what to look at next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Resolving => f.write_str("asking for its MAC address"),
            Self::NoNeighbour { address, router, interface } => {
                let how = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
                if *router {
                    write!(f, "the router before it, {address}, does not answer {how} on {interface}.")?;
                } else {
                    write!(
                        f,
                        "does not answer {how}: is it running, on the segment of {interface}, at this address?"
                    )?;
                }
                if address.is_ipv6() {
                    write!(
                        f,
                        " Asking needs a link-local address here, not `tentative`: see `ip -6 address`"
                    )?;
                }
                Ok(())
            }
            Self::NoRoute => f.write_str("no route to its address: see `ip route get`"),
            Self::LinkDown { interface } => {
                write!(f, "{interface} is down or has no carrier: see `ip link show {interface}`")
            }
            Self::BehindRouter { gateway } => {
                write!(f, "is behind the router {gateway}: forward = \"l2\" needs it on the same segment")
            }
            Self::WrongInterface { interface, cause } => write!(f, "is reached through {interface}, {cause}"),
            Self::NoSource { interface } => {
                write!(
                    f,
                    "this host has no address for its packets on {interface}: give it one of the family"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_up_is_up_and_the_others_say_why() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), "fe80::1".parse().unwrap());
        let interface = || "eth1".to_owned();
        let silent = |address, router| BackendState::NoNeighbour { address, router, interface: interface() };
        let cases = [
            (BackendState::Resolving, "MAC"),
            (silent(v4, false), "ARP: is it running"),
            (silent(v4, true), "the router before it, 10.0.0.1, does not answer ARP on eth1"),
            (
                silent(v6, true),
                "fe80::1, does not answer neighbour discovery on eth1. Asking needs a link-local",
            ),
            (BackendState::NoRoute, "ip route get"),
            (BackendState::LinkDown { interface: interface() }, "eth1 is down"),
            (BackendState::BehindRouter { gateway: v4 }, "10.0.0.1"),
            (
                BackendState::WrongInterface { interface: interface(), cause: "a bridge".into() },
                "eth1, a bridge",
            ),
            (BackendState::NoSource { interface: interface() }, "eth1"),
        ];
        assert!(BackendState::Up.is_up());
        for (state, says) in &cases {
            assert!(!state.is_up());
            let text = state.to_string();
            assert!(text.contains(says), "{text}");
        }
    }
}
