//! The time, as a parameter.
//!
//! Code that stamps, waits or rates takes a [`Clock`] instead of asking the system, so that a test
//! decides what time it is and never sleeps. This module does not sleep, schedule or format.
//!
//! There are two times because they answer two questions. [`Clock::unix_ms`] is the date: people
//! and other machines understand it, and it may jump when somebody sets it. [`Clock::monotonic`]
//! only ever grows: intervals, deadlines and rates are measured by it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use once_cell::sync::Lazy;

/// Where the time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z. May go backwards when the system's date is set.
    fn unix_ms(&self) -> u64;

    /// Time since a fixed but arbitrary moment of this clock's life. Never goes backwards.
    fn monotonic(&self) -> Duration;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

// An `Instant` means nothing by itself, so all `SystemClock`s of a process count from one moment.
static ORIGIN: Lazy<Instant> = Lazy::new(Instant::now);

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        // A date before 1970 is a machine without a battery clock: 0 is as wrong, and harmless.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        // Saturating: the first caller may have read its `Instant` before `ORIGIN` was made.
        Instant::now().saturating_duration_since(*ORIGIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_knows_the_century() {
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
