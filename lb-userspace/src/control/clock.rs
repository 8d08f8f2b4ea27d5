//! Unix time for the program: what is to be added to its ticks.

use std::time::{SystemTime, UNIX_EPOCH};

use lb_common::live::ClockReading;
use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::datapath::{Datapath, DatapathError};

/// What the system's clocks said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    realtime_ns: u64,
    monotonic_ns: u64,
}

/// Publishes the length of a tick and the offset from ticks to unix time. To be called at start before packets are
/// judged, and every second, for wall clocks are stepped.
///
/// # Errors
/// If the kernel's clocks cannot be read.
pub fn publish(datapath: &Datapath) -> Result<(), DatapathError> {
    let failed = |cause: String| DatapathError::Run { program: lb_common::maps::PROGRAM_CLOCK, cause };
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| failed(format!("CLOCK_MONOTONIC_COARSE has no resolution: {errno}")))?;
    let tick_ns = nanoseconds(tick);
    let moment = moment().map_err(|errno| failed(format!("the system's clocks cannot be read: {errno}")))?;
    let offset_ns = offset(moment, datapath.read_clock()?, tick_ns);
    if datapath.live.tick_ns() != tick_ns {
        datapath.live.set_tick_ns(tick_ns);
    }
    datapath.live.set_offset_ns(offset_ns);
    Ok(())
}

/// Unix seconds by the system's clock.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Unix time at the reading's tick, less the ticks; both wrap, and their sum in the program wraps back.
const fn offset(moment: Moment, reading: ClockReading, tick_ns: u64) -> u64 {
    moment
        .realtime_ns
        .wrapping_sub(moment.monotonic_ns)
        .wrapping_add(reading.monotonic_ns)
        .wrapping_sub(reading.jiffies.wrapping_mul(tick_ns))
}

fn moment() -> nix::Result<Moment> {
    Ok(Moment {
        realtime_ns: nanoseconds(clock_gettime(ClockId::CLOCK_REALTIME)?),
        monotonic_ns: nanoseconds(clock_gettime(ClockId::CLOCK_MONOTONIC)?),
    })
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    time.tv_sec() as u64 * lb_common::live::SECOND_NS + time.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_offset_are_unix_time() {
        let tick_ns = 4_000_000;
        // The kernel starts jiffies shortly before 32 bits overflow; as 64 bits they are ticks since boot plus that.
        let reading = ClockReading { jiffies: 4_294_892_296 + 1000, monotonic_ns: 4_000_000_000 };
        let moment = Moment { realtime_ns: 1_800_000_004_001_000_000, monotonic_ns: 4_001_000_000 };
        let offset = offset(moment, reading, tick_ns);
        let at_tick = (reading.jiffies * tick_ns).wrapping_add(offset);
        assert_eq!(at_tick, 1_800_000_004_000_000_000);
        let a_second_later = ((reading.jiffies + 250) * tick_ns).wrapping_add(offset);
        assert_eq!(a_second_later, 1_800_000_005_000_000_000);
    }
}
