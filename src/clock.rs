//! Time as a parameter.
//!
//! Code that stamps, waits or limits rates takes a [`Clock`] and does not ask the system, so that
//! a test sets the time and never sleeps. This module does not sleep, schedule or format.
//!
//! [`Clock::unix_ms`] is the date: it is comparable between machines and may jump when the system's
//! date is set. [`Clock::monotonic`] never goes backwards: intervals, deadlines and rates are
//! measured by it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use once_cell::sync::Lazy;

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
        // A date before 1970 means that the machine's clock was never set; 0 is used then.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        // Saturates, because the first caller may read its `Instant` before `ORIGIN` is made.
        Instant::now().saturating_duration_since(*ORIGIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
