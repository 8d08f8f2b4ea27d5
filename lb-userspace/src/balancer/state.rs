//! Whether a backend may be used, as a node sees it.

use std::{fmt, net::IpAddr};

/// What the daemon knows of the way to a backend. Only one that is up gets sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Its MAC address is known and it is reached through an interface of the program.
    Up,
    /// Nothing is known yet: the neighbour is being asked for.
    Resolving,
    /// It does not answer ARP.
    NoNeighbour,
    /// There is no route to it.
    NoRoute,
    /// It is reached through a router: l2 can only send to the same segment.
    BehindRouter {
        /// The router.
        gateway: IpAddr,
    },
    /// It is reached through an interface that the program is not attached to.
    WrongInterface {
        /// That interface.
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
            Self::NoNeighbour => "no-neighbour",
            Self::NoRoute => "no-route",
            Self::BehindRouter { .. } => "behind-router",
            Self::WrongInterface { .. } => "wrong-interface",
        }
    }
}

impl fmt::Display for BackendState {
    /// The reason, and what to look at next.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up => f.write_str("up"),
            Self::Resolving => f.write_str("asking for its MAC address"),
            Self::NoNeighbour => {
                f.write_str("does not answer ARP: is it running, on this segment, at this address?")
            }
            Self::NoRoute => f.write_str("no route to its address: see `ip route get`"),
            Self::BehindRouter { gateway } => {
                write!(f, "is behind the router {gateway}: forward = \"l2\" needs it on the same segment")
            }
            Self::WrongInterface { interface } => {
                write!(
                    f,
                    "is reached through {interface}, which is not among `interfaces`: add it, or move the backend"
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
        let down = [
            BackendState::Resolving,
            BackendState::NoNeighbour,
            BackendState::NoRoute,
            BackendState::BehindRouter { gateway: [10, 0, 0, 1].into() },
            BackendState::WrongInterface { interface: "eth1".into() },
        ];
        assert!(BackendState::Up.is_up());
        for state in &down {
            assert!(!state.is_up());
            assert!(state.to_string().len() > 20, "{state}");
        }
        assert!(down[3].to_string().contains("10.0.0.1") && down[4].to_string().contains("eth1"));
    }
}
