//! Time as a parameter.
//!
//! Code that stamps, waits or limits rates takes a [`Clock`] and does not ask the system, so that
//! a test sets the time and never sleeps. This module does not sleep, schedule or format.
//!
//! [`Clock::unix_ms`] is the date: it is comparable between machines and may jump when the system's
//! date is set. [`Clock::monotonic`] never goes backwards: intervals, deadlines and rates are
//! measured by it.
//!
//! The machine's date may be nonsense: before 1970, or beyond the year 9999, where calendar
//! libraries panic. So every date that is stored, sent or shown is read by
//! [`SystemClock::unix_ms`] or [`now`], and becomes a [`Timestamp`] by [`timestamp`]: all three
//! keep it within these years.

use jiff::Timestamp;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use once_cell::sync::Lazy;

/// The last date that is used, in milliseconds since 1970: almost the end of the year 9999, because
/// [`Timestamp`] ends a day before it.
pub(crate) const UNIX_MS_MAX: u64 = 253_402_207_200_999;

/// Milliseconds of a UTC day.
pub(crate) const DAY_MS: u64 = 86_400_000;

/// A source of time.
///
/// ```
/// use pixelgate::custom::Clock;
/// use std::time::Duration;
///
/// /// A clock for tests, which stands still.
/// struct Fixed;
///
/// impl Clock for Fixed {
///     fn unix_ms(&self) -> u64 {
///         1_893_456_000_000 // 2030-01-01T00:00:00Z
///     }
///
///     fn monotonic(&self) -> Duration {
///         Duration::ZERO
///     }
/// }
/// ```
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z. May go backwards when the system's date is set.
    fn unix_ms(&self) -> u64;

    /// Time since a fixed but arbitrary moment. Never goes backwards.
    fn monotonic(&self) -> Duration;
}

/// The clock of the operating system.
///
/// ```
/// use pixelgate::custom::{Clock, SystemClock};
///
/// let began = SystemClock.monotonic();
/// assert!(SystemClock.monotonic() >= began);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

// An `Instant` cannot be turned into a number, so all `SystemClock`s measure from this one.
static ORIGIN: Lazy<Instant> = Lazy::new(Instant::now);

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        unix_ms(SystemTime::now())
    }

    fn monotonic(&self) -> Duration {
        // Saturates, because the first caller may read its `Instant` before `ORIGIN` is made.
        Instant::now().saturating_duration_since(*ORIGIN)
    }
}

/// A date of the machine, from 0 to [`UNIX_MS_MAX`].
fn unix_ms(date: SystemTime) -> u64 {
    // A date before 1970 means that the machine's clock was never set; 0 is used then.
    let since_epoch = date.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX).min(UNIX_MS_MAX)
}

/// The date of the machine, to the millisecond. `Timestamp::now` panics beyond the year 9999.
#[cfg(feature = "http")]
pub(crate) fn now() -> Timestamp {
    timestamp(SystemClock.unix_ms())
}

/// A time in milliseconds since 1970, for a text. A host's clock may give any number, and an old
/// record one after [`UNIX_MS_MAX`]; such a time becomes the last one that has a text.
pub(crate) fn timestamp(unix_ms: u64) -> Timestamp {
    let unix_ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_that_is_nonsense_becomes_the_nearest_one_that_has_a_text() {
        let second = Duration::from_secs(1);
        let years = |count: u64| Duration::from_secs(count * 31_556_952);
        for (date, expect) in [
            (UNIX_EPOCH - second, 0),
            (UNIX_EPOCH - years(3_000), 0),
            (UNIX_EPOCH + second, 1_000),
            (UNIX_EPOCH + years(8_100), UNIX_MS_MAX),
            (UNIX_EPOCH + years(200_000), UNIX_MS_MAX),
        ] {
            assert_eq!(unix_ms(date), expect, "{date:?}");
        }
        for (unix_ms, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_401_913_123, "2026-11-23T02:45:13.123Z"),
            (UNIX_MS_MAX, "9999-12-30T22:00:00.999Z"),
            (UNIX_MS_MAX + 1, "9999-12-30T22:00:00.999Z"),
            (u64::MAX, "9999-12-30T22:00:00.999Z"),
        ] {
            assert_eq!(format!("{:.3}", timestamp(unix_ms)), expect, "{unix_ms}");
        }
    }

    #[test]
    fn the_system_clock_gives_a_date_of_this_century() {
        let year_2020 = 1_577_836_800_000;
        let year_2100 = 4_102_444_800_000;
        assert!((year_2020..year_2100).contains(&SystemClock.unix_ms()));
    }

    #[test]
    fn monotonic_time_never_goes_back() {
        let clock = SystemClock;
        let mut last = clock.monotonic();
        for _ in 0..10_000 {
            let now = clock.monotonic();
            assert!(now >= last);
            last = now;
        }
    }
}
