//! The MAC address of a next hop over time, from the neighbour table.
//!
//! ```text
//!   resolving ──known──▶ up ──failed──▶ no-neighbour ──known──▶ up
//!                        up ──forgotten, for less than KEPT──▶ up, by the address it had
//! ```

use std::time::{Duration, Instant};

use super::types::{Mac, Neighbour};

/// How long the last MAC address stays in use after the kernel has removed the neighbour entry. The kernel removes
/// entries when the table is full, and resolving an address takes up to three seconds.
pub const KEPT: Duration = Duration::from_secs(5);

/// How long a first resolution may take before the neighbour counts as gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// The state of the MAC address of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Not known yet.
    Resolving {
        /// Since when.
        since: Instant,
    },
    /// In the neighbour table.
    Known(Mac),
    /// No longer in the neighbour table, without a failed resolution.
    Forgotten {
        /// The last MAC address.
        mac: Mac,
        /// Since when.
        since: Instant,
    },
    /// It does not answer.
    Gone,
}

impl Resolution {
    /// The MAC address of a backend in the active tables. Its neighbour entry may be gone.
    pub const fn remembered(mac: Mac, now: Instant) -> Self {
        Self::Forgotten { mac, since: now }
    }

    /// Applies the entry of the neighbour table; `None` if there is none.
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

    /// The MAC address to use, if there is one.
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
            // Removed by the kernel, and probed again.
            (10, None, Some(ONE)),
            (11, Some(Neighbour::Asking), Some(ONE)),
            (12, Some(known(OTHER)), Some(OTHER)),
            // It does not answer, which is reported only once.
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
