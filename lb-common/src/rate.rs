//! Rate limits: a rate per second and a burst, with one word of state.

use crate::control::SECOND_NS;

/// A rate limit. All zeros: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// The cost of one event, nanoseconds: `1 s / rate`. 0: no limit.
    pub cost_ns: u64,
    /// The debt above which an event is refused, nanoseconds: `(burst - 1) * cost_ns`.
    pub debt_ns: u64,
}

/// The rates of a service's sessions, by the class in the token.
pub type RateTable = [Rate; CLASSES];

/// The number of classes that a token can have.
pub const CLASSES: usize = 256;

const _: () = assert!(size_of::<Rate>() == 16 && align_of::<Rate>() == 8);
crate::map_value!(Rate);

impl Rate {
    /// A limit of `per_second` events per second and `burst` events at once. Both are at least 1.
    pub const fn new(per_second: u32, burst: u32) -> Self {
        let cost_ns = SECOND_NS / per_second as u64;
        Self { cost_ns, debt_ns: (burst as u64 - 1) * cost_ns }
    }
}

/// The state of a rate limit: a token bucket that is measured in time, by the virtual scheduling form of the generic
/// cell rate algorithm (ITU-T I.371). It needs one word, and no division per packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct GcraState(
    /// The time (kernel clock, ns) at which the debt is zero.
    pub u64,
);

impl GcraState {
    /// The state after one more event at `now` (kernel clock, ns); `None` if the event exceeds the limit.
    #[inline(always)]
    pub const fn after(self, now: u64, rate: Rate) -> Option<Self> {
        let from = if self.0 > now { self.0 } else { now };
        if from - now > rate.debt_ns {
            return None;
        }
        Some(Self(from + rate.cost_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(rate: Rate, packets: impl Iterator<Item = u64>) -> usize {
        let mut state = GcraState::default();
        packets.filter(|now| state.after(*now, rate).map(|next| state = next).is_some()).count()
    }

    #[test]
    fn a_rate_is_a_burst_and_then_so_many_a_second() {
        let start = 7 * SECOND_NS;
        let rate = Rate::new(200, 400);
        assert_eq!(passing(rate, std::iter::repeat_n(start, 1000)), 400);
        let ten_seconds = (0..100_000).map(|i| start + i * SECOND_NS / 10_000);
        assert!((2399..=2401).contains(&passing(rate, ten_seconds)));
        let in_time = (0..1000).map(|i| start + i * SECOND_NS / 200);
        assert_eq!(passing(Rate::new(200, 1), in_time), 1000);
    }

    #[test]
    fn the_kernels_clock_may_have_run_for_ages() {
        assert_eq!(passing(Rate::new(1, u32::MAX), std::iter::repeat_n(u64::MAX / 2, 10)), 10);
    }

    #[test]
    fn exactly_the_debt_is_not_too_much() {
        let rate = Rate { cost_ns: 10, debt_ns: 30 };
        assert_eq!(GcraState(130).after(100, rate), Some(GcraState(140)));
        assert_eq!(GcraState(131).after(100, rate), None);
        assert_eq!(GcraState(90).after(100, rate), Some(GcraState(110)), "what is in the past is no debt");
    }
}
