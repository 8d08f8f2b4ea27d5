//! Publishes the Unix time for the XDP program, as an offset to its ticks, unless the wall clock was set back.
//!
//! ```text
//!   follows ──set back by more than half a second──▶ holds ──the wall clock is right again, or accepted──▶ follows
//! ```
//!
//! Holding keeps expired tokens expired. While the clock is held, the offset is not confirmed, and after
//! `OFFSET_STALE_NS` the program admits no new token.

use std::time::{SystemTime, UNIX_EPOCH};

use lb_common::control::{ClockReading, OFFSET_STALE_NS, SECOND_NS};
use nix::time::{ClockId, clock_getres, clock_gettime};
use tracing::{info, warn};

use crate::datapath::{Datapath, DatapathError};

/// A change of the wall clock by more than this is a jump: far more than NTP slews between two readings, and less
/// than the clock skew that is tolerated in tokens.
const JUMP_NS: u64 = SECOND_NS / 2;

/// The published clock.
#[derive(Debug, Default)]
pub struct Clock {
    detector: JumpDetector,
    last: Option<Reading>,
    /// The error of the last reading.
    failed: Option<String>,
}

/// A reading of all clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Ticks of the program clock, nanoseconds.
    pub kernel_ns: u64,
    /// The offset to the ticks by the wall clock.
    pub wall_offset_ns: u64,
    /// The published offset.
    pub offset_ns: u64,
    /// When the published offset was last confirmed, in ticks.
    pub confirmed_ns: u64,
}

/// Jumps of the wall clock that this process has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jumps {
    /// Forward.
    pub forward: u64,
    /// Backward.
    pub backward: u64,
}

impl Clock {
    /// Reads the wall clock and publishes the offset. Call it at start before the program is attached, and every
    /// second.
    ///
    /// # Errors
    /// If the kernel's clocks cannot be read.
    pub fn follow(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        let followed = self.look(datapath);
        self.failed = followed.as_ref().err().map(ToString::to_string);
        followed
    }

    fn look(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        let reading = read(datapath)?;
        let held = self.detector.held;
        let (published, jump) = self.detector.observe(reading.wall_offset_ns, reading.offset_ns);
        if let Some(jump_ns) = jump {
            warn!("the wall clock was set {}", direction(jump_ns));
        }
        match published {
            Some(offset_ns) => {
                if held {
                    info!("the wall clock is correct again, and the program follows it");
                }
                self.publish(datapath, Reading { offset_ns, ..reading });
            }
            None => self.last = Some(reading),
        }
        Ok(())
    }

    /// Publishes the wall clock although it was set back.
    ///
    /// # Errors
    /// If the kernel's clocks cannot be read.
    pub fn accept(&mut self, datapath: &Datapath) -> Result<(), DatapathError> {
        let reading = read(datapath)?;
        self.detector = JumpDetector { last: Some(reading.wall_offset_ns), held: false, ..self.detector };
        self.publish(datapath, Reading { offset_ns: reading.wall_offset_ns, ..reading });
        Ok(())
    }

    fn publish(&mut self, datapath: &Datapath, reading: Reading) {
        datapath.control_page.set_offset_ns(reading.offset_ns);
        datapath.control_page.set_confirmed_ns(reading.kernel_ns);
        self.last = Some(Reading { confirmed_ns: reading.kernel_ns, ..reading });
    }

    /// The last reading.
    pub const fn last(&self) -> Option<Reading> {
        self.last
    }

    /// Whether the program clock is held.
    pub const fn is_held(&self) -> bool {
        self.detector.held
    }

    /// The later of wall clock and program clock, Unix time in seconds; the program clock is ahead while it is held.
    pub fn latest(&self) -> u64 {
        let ahead =
            self.last.filter(|_| self.is_held()).map_or(0, |last| last.difference_ns().unsigned_abs());
        unix_now() + ahead.div_ceil(SECOND_NS)
    }

    /// The jumps so far.
    pub const fn jumps(&self) -> Jumps {
        self.detector.jumps
    }

    /// Why the program may refuse valid tokens.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        reasons.extend(self.failed.as_ref().map(|why| format!("the clock cannot be read: {why}")));
        let Some(reading) = self.last else { return vec!["the clock is not published".to_owned()] };
        if self.is_held() {
            reasons.push(format!(
                "the wall clock was set {}: the program clock is held, so that expired tokens stay expired. Correct \
                 the wall clock, or run `tollgate clock accept`",
                direction(reading.difference_ns())
            ));
        }
        if reading.is_stale() {
            reasons.push(format!(
                "the clock was not confirmed for {} s: new tokens are not admitted (`stale_clock`)",
                reading.confirmed_age_ns() / SECOND_NS
            ));
        }
        reasons
    }
}

impl Reading {
    /// Wall clock minus program clock, nanoseconds.
    pub const fn difference_ns(&self) -> i64 {
        self.wall_offset_ns.wrapping_sub(self.offset_ns).cast_signed()
    }

    /// Wall clock, Unix time in nanoseconds.
    pub const fn wall_ns(&self) -> u64 {
        self.kernel_ns.wrapping_add(self.wall_offset_ns)
    }

    /// Program clock, Unix time in nanoseconds.
    pub const fn program_ns(&self) -> u64 {
        self.kernel_ns.wrapping_add(self.offset_ns)
    }

    /// Time since the offset was confirmed.
    pub const fn confirmed_age_ns(&self) -> u64 {
        self.kernel_ns.saturating_sub(self.confirmed_ns)
    }

    /// Whether that is too long for the program to admit new tokens.
    pub const fn is_stale(&self) -> bool {
        self.confirmed_age_ns() > OFFSET_STALE_NS
    }
}

/// Detects jumps of the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct JumpDetector {
    /// The last offset by the wall clock.
    last: Option<u64>,
    held: bool,
    jumps: Jumps,
}

impl JumpDetector {
    /// Returns the offset to publish, if any, and by how much the wall clock has jumped. `published` is 0 if no
    /// offset was published; it may be the offset of an earlier daemon.
    const fn observe(&mut self, wall: u64, published: u64) -> (Option<u64>, Option<i64>) {
        if published == 0 {
            self.last = Some(wall);
            return (Some(wall), None);
        }
        let before = match self.last {
            Some(last) => last,
            None => published,
        };
        let moved = wall.wrapping_sub(before).cast_signed();
        let jump = if moved.unsigned_abs() > JUMP_NS { Some(moved) } else { None };
        match jump {
            Some(1..) => self.jumps.forward += 1,
            Some(_) => self.jumps.backward += 1,
            None => {}
        }
        self.last = Some(wall);
        let difference = wall.wrapping_sub(published).cast_signed();
        self.held = difference < 0 && difference.unsigned_abs() > JUMP_NS;
        let published = match difference {
            _ if self.held => None,
            // Small steps back are not published either: many of them would add up to a jump.
            ..0 => Some(published),
            _ => Some(wall),
        };
        (published, jump)
    }
}

/// The wall clock, Unix time in seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A jump of the wall clock in words, to the second; below ten seconds, to the millisecond.
fn direction(difference_ns: i64) -> String {
    let by = std::time::Duration::from_nanos(difference_ns.unsigned_abs());
    let by = match by.as_secs() {
        0..10 => std::time::Duration::from_millis((by.as_nanos() / 1_000_000) as u64),
        _ => std::time::Duration::from_secs(by.as_secs() + u64::from(by.subsec_millis() >= 500)),
    };
    let direction = if difference_ns < 0 { "back" } else { "forward" };
    format!("{direction} by {}", humantime::format_duration(by))
}

/// Reads all clocks, and publishes the length of a tick if it is not set.
fn read(datapath: &Datapath) -> Result<Reading, DatapathError> {
    let failed = |cause: String| DatapathError::Run { program: lb_common::maps::PROGRAM_CLOCK, cause };
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .map_err(|errno| failed(format!("CLOCK_MONOTONIC_COARSE has no resolution: {errno}")))?;
    let tick_ns = nanoseconds(tick);
    let moment = moment().map_err(|errno| failed(format!("the system's clocks cannot be read: {errno}")))?;
    let kernel = datapath.read_clock()?;
    if datapath.control_page.tick_ns() != tick_ns {
        datapath.control_page.set_tick_ns(tick_ns);
    }
    Ok(Reading {
        kernel_ns: kernel.jiffies.wrapping_mul(tick_ns),
        wall_offset_ns: offset(moment, kernel, tick_ns),
        offset_ns: datapath.control_page.offset_ns(),
        confirmed_ns: datapath.control_page.confirmed_ns(),
    })
}

/// The clocks of the system at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    realtime_ns: u64,
    monotonic_ns: u64,
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
    time.tv_sec() as u64 * SECOND_NS + time.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_jumps_are_reported_to_the_second() {
        assert_eq!(direction(-3_599_999_400_000), "back by 1h");
        assert_eq!(direction(61_499_000_000), "forward by 1m 1s");
        assert_eq!(direction(-9_999_600_000), "back by 9s 999ms");
    }

    #[test]
    fn ticks_and_offset_are_unix_time() {
        let tick_ns = 4_000_000;
        // The kernel initialises jiffies shortly before the overflow of 32 bits. As 64 bits, they are ticks since boot
        // plus this value.
        let reading = ClockReading { jiffies: 4_294_892_296 + 1000, monotonic_ns: 4_000_000_000 };
        let moment = Moment { realtime_ns: 1_800_000_004_001_000_000, monotonic_ns: 4_001_000_000 };
        let offset = offset(moment, reading, tick_ns);
        let at_tick = (reading.jiffies * tick_ns).wrapping_add(offset);
        assert_eq!(at_tick, 1_800_000_004_000_000_000);
        let a_second_later = ((reading.jiffies + 250) * tick_ns).wrapping_add(offset);
        assert_eq!(a_second_later, 1_800_000_005_000_000_000);
    }

    /// Starts with the published offset `found`; the wall clock is off by `seconds` at each observation. Returns
    /// whether each observation published an offset, the jumps, and the last published offset.
    fn followed(found: u64, seconds: &[f64]) -> (Vec<bool>, Jumps, u64) {
        let (mut detector, mut published) = (JumpDetector::default(), found);
        let looks = seconds.iter().map(|seconds| {
            let wall = RIGHT.wrapping_add_signed((seconds * SECOND_NS as f64) as i64);
            let (publish, _) = detector.observe(wall, published);
            published = publish.unwrap_or(published);
            assert_eq!(detector.held, publish.is_none());
            publish.is_some()
        });
        (looks.collect(), detector.jumps, published)
    }

    const RIGHT: u64 = 1_800_000_000 * SECOND_NS;

    #[test]
    fn a_clock_that_is_slewed_is_followed() {
        let (looks, jumps, published) = followed(0, &[0.0, 0.4, 0.8, 0.5, 0.4, 0.9]);
        assert_eq!((looks, jumps), (vec![true; 6], Jumps::default()));
        assert_eq!(published, RIGHT + 9 * SECOND_NS / 10);
    }

    #[test]
    fn many_small_steps_back_are_a_large_one() {
        let (looks, jumps, published) = followed(RIGHT, &[0.0, -0.2, -0.4, -0.6, -0.8, -1.0]);
        assert_eq!((looks, jumps), (vec![true, true, true, false, false, false], Jumps::default()));
        assert_eq!(published, RIGHT);
    }

    #[test]
    fn a_clock_that_is_set_forward_is_followed_and_counted() {
        let (looks, jumps, published) = followed(RIGHT, &[0.0, 3600.0, 3600.1, 7200.0]);
        assert_eq!((looks, jumps), (vec![true; 4], Jumps { forward: 2, backward: 0 }));
        assert_eq!(published, RIGHT + 7200 * SECOND_NS);
    }

    #[test]
    fn a_clock_that_is_set_back_is_held_until_it_has_caught_up() {
        // Set back by an hour, then nearer, farther, and right again.
        let (looks, jumps, published) =
            followed(RIGHT, &[0.0, -3600.0, -3600.0, -1800.0, -4000.0, -0.4, 0.0]);
        assert_eq!(looks, [true, false, false, false, false, true, true]);
        assert_eq!(jumps, Jumps { forward: 2, backward: 2 });
        assert_eq!(published, RIGHT);
    }

    #[test]
    fn what_a_daemon_before_has_published_counts() {
        let (looks, jumps, published) = followed(RIGHT + 3600 * SECOND_NS, &[0.0, 0.0]);
        assert_eq!((looks, jumps), (vec![false, false], Jumps { forward: 0, backward: 1 }));
        assert_eq!(published, RIGHT + 3600 * SECOND_NS);
        let (looks, jumps, published) = followed(RIGHT - 3600 * SECOND_NS, &[0.0]);
        assert_eq!((looks, jumps, published), (vec![true], Jumps { forward: 1, backward: 0 }, RIGHT));
    }

    #[test]
    fn offsets_may_wrap() {
        // Ticks since boot, plus the five minutes by which the kernel starts before the 32-bit overflow, can exceed
        // Unix time if the wall clock was never set.
        let (mut detector, published) = (JumpDetector::default(), u64::MAX - 3);
        assert_eq!(detector.observe(5, published), (Some(5), None));
        assert_eq!(detector.observe(SECOND_NS, 5), (Some(SECOND_NS), Some(SECOND_NS as i64 - 5)));
    }

    #[test]
    fn it_says_why_it_is_not_ready() {
        let mut clock = Clock::default();
        assert_eq!(clock.not_ready(), ["the clock is not published"]);
        let reading = Reading {
            kernel_ns: OFFSET_STALE_NS + 10,
            wall_offset_ns: RIGHT,
            offset_ns: RIGHT,
            confirmed_ns: 10,
        };
        clock.last = Some(reading);
        assert_eq!(clock.not_ready(), [""; 0]);
        clock.last = Some(Reading { confirmed_ns: 9, ..reading });
        assert!(clock.not_ready()[0].contains("for 4000 s: new tokens are not admitted"));
        clock.last = Some(Reading { offset_ns: RIGHT + 3600 * SECOND_NS, ..reading });
        clock.detector.held = true;
        let said = clock.not_ready().join("\n");
        assert!(said.contains("set back by 1h: ") && said.contains("`tollgate clock accept`"), "{said}");
    }
}
