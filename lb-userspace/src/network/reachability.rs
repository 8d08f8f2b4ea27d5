//! Whether a backend can be reached.

use std::{fmt, net::IpAddr};

/// Whether a backend can be reached, or why not. Only a backend that is up gets sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// The MAC address of the next hop is known, and frames can be sent to it.
    Up,
    /// The first resolution is pending.
    Resolving,
    /// The backend, or the router in front of it, does not answer ARP or neighbour discovery.
    NoNeighbour {
        /// Address that does not answer.
        address: IpAddr,
        /// Whether it is a router.
        router: bool,
        /// Interface of the route.
        interface: String,
    },
    /// There is no route to it.
    NoRoute,
    /// The interface that leads to it is down or has no carrier.
    LinkDown {
        /// That interface.
        interface: String,
    },
    /// The backend is behind a router: `l2` only reaches the segment of an interface.
    BehindRouter {
        /// The router.
        gateway: IpAddr,
    },
    /// The route leads through an interface that frames cannot be redirected to.
    WrongInterface {
        /// That interface.
        interface: String,
        /// Why, and how to fix it.
        cause: String,
    },
    /// This host has no source address for packets to the backend.
    NoSource {
        /// Interface that needs an address.
        interface: String,
    },
}

impl BackendState {
    /// Whether it gets sessions.
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up)
    }

    /// One word, as in JSON and tables.
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
    /// The reason, and a hint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Resolving => f.write_str("resolving its MAC address"),
            Self::NoNeighbour { address, router, interface } => {
                let how = if address.is_ipv4() { "ARP" } else { "neighbour discovery" };
                if *router {
                    write!(f, "the router in front of it, {address}, does not answer {how} on {interface}.")?;
                } else {
                    write!(
                        f,
                        "does not answer {how}: is it running, on the segment of {interface}, at this address?"
                    )?;
                }
                if address.is_ipv6() {
                    write!(
                        f,
                        " Neighbour discovery needs a link-local address here that is not `tentative`: see \
                         `ip -6 address`"
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
                write!(f, "this host has no source address on {interface}: add an address of the same family")
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
            (silent(v4, true), "the router in front of it, 10.0.0.1, does not answer ARP on eth1"),
            (
                silent(v6, true),
                "fe80::1, does not answer neighbour discovery on eth1. Neighbour discovery needs a link-local",
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
