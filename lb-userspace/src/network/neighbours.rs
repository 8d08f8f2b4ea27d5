//! Whether a backend may be used, from what the kernel says of route and neighbour over time.
//!
//! ```text
//!   resolving ──known──▶ up ──failed──▶ no-neighbour ──known──▶ up
//!                        up ──forgotten, for less than KEPT──▶ up, by the address it had
//! ```

use std::time::{Duration, Instant};

use super::types::{Mac, Neighbour};

/// How long a backend is used by the MAC address it had when the kernel has forgotten it: entries are collected where
/// a table is full, and asking again takes up to three seconds.
pub const KEPT: Duration = Duration::from_secs(5);

/// How long nothing is known of a backend before it counts as gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of a backend's MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Never known.
    Resolving {
        /// Since when.
        since: Instant,
    },
    /// In the kernel's table.
    Known(Mac),
    /// Not there any more, without an answer whether it is gone.
    Forgotten {
        /// As it was.
        mac: Mac,
        /// Since when.
        since: Instant,
    },
    /// It does not answer.
    Gone,
}

impl Resolution {
    /// Of a backend that the tables in the kernel have, which may be younger than its neighbour entry.
    pub const fn remembered(mac: Mac, now: Instant) -> Self {
        Self::Forgotten { mac, since: now }
    }

    /// Follows the neighbour table; `None` where it has no entry.
    pub fn observe(&mut self, neighbour: Option<Neighbour>, now: Instant) {
        *self = match (*self, neighbour) {
            (_, Some(Neighbour::Known { mac, .. })) => Self::Known(mac),
            (_, Some(Neighbour::Failed)) | (Self::Gone, _) => Self::Gone,
            (Self::Known(mac), _) => Self::Forgotten { mac, since: now },
            (Self::Forgotten { since, .. }, _) if now.duration_since(since) >= KEPT => Self::Gone,
            (Self::Resolving { since }, _) if now.duration_since(since) >= PATIENCE => Self::Gone,
            (unchanged @ (Self::Forgotten { .. } | Self::Resolving { .. }), _) => unchanged,
        };
    }

    /// The MAC address to use, if the backend may be used.
    pub const fn mac(&self) -> Option<Mac> {
        match self {
            Self::Known(mac) | Self::Forgotten { mac, .. } => Some(*mac),
            Self::Resolving { .. } | Self::Gone => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];

    fn known(mac: Mac) -> Neighbour {
        Neighbour::Known { mac, fresh: true }
    }

    #[test]
    fn a_backend_follows_its_neighbour_entry() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut backend = Resolution::Resolving { since: start };
        let steps = [
            (0, None, None),
            (1, Some(Neighbour::Asking), None),
            (2, Some(known(ONE)), Some(ONE)),
            // Collected by the kernel, and asked for again.
            (10, None, Some(ONE)),
            (11, Some(Neighbour::Asking), Some(ONE)),
            (12, Some(known(OTHER)), Some(OTHER)),
            // It does not answer, and that is said once only.
            (20, Some(Neighbour::Failed), None),
            (21, Some(Neighbour::Asking), None),
            (22, None, None),
            (23, Some(known(ONE)), Some(ONE)),
            // Forgotten for too long.
            (30, None, Some(ONE)),
            (34, None, Some(ONE)),
            (35, None, None),
        ];
        for (second, neighbour, expected) in steps {
            backend.observe(neighbour, at(second));
            assert_eq!(backend.mac(), expected, "second {second}: {backend:?}");
        }
    }

    #[test]
    fn a_backend_that_never_answers_is_gone() {
        let start = Instant::now();
        let mut backend = Resolution::Resolving { since: start };
        backend.observe(None, start + PATIENCE);
        assert_eq!(backend, Resolution::Gone);
    }
}
