//! The wait after a failed attempt: full jitter, with a bound that doubles from 250 ms to 60 s
//! (SPEC 7).
//!
//! Full jitter is any time between zero and the bound. When many edges lose the same backend at the
//! same moment, it spreads their next attempts more evenly than other schemes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Upper bound of the first wait, in milliseconds.
pub const BACKOFF_MS_MIN: u64 = 250;
/// Upper bound of every wait, in milliseconds.
pub const BACKOFF_MS_MAX: u64 = 60_000;

/// Gives the waits. Its randomness is a parameter, so that a simulation can repeat a run.
#[derive(Clone)]
pub struct Backoff {
    random: Arc<dyn Fn() -> f64 + Send + Sync>,
}

impl Backoff {
    /// Waits from this source of numbers, from 0 up to but not including 1.
    pub fn new(random: impl Fn() -> f64 + Send + Sync + 'static) -> Backoff {
        Backoff { random: Arc::new(random) }
    }

    /// A wait after `failures` in a row, and at least `after` where the upstream asked for it.
    pub fn wait(&self, failures: u32, after: Option<Duration>) -> Duration {
        bound(failures).mul_f64((self.random)()).max(after.unwrap_or_default())
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new(rand::random::<f64>)
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backoff")
    }
}

/// The longest wait after `failures` in a row (1 is the first).
pub fn bound(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    Duration::from_millis((BACKOFF_MS_MIN << doublings).min(BACKOFF_MS_MAX))
}

/// A random wait after `failures` in a row, and at least `after` where the upstream asked for it.
pub fn wait(failures: u32, after: Option<Duration>) -> Duration {
    Backoff::default().wait(failures, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_from_a_quarter_second_to_a_minute_and_stays() {
        let bounds: Vec<_> = (0..12).map(|n| bound(n).as_millis()).collect();
        let expect =
            [250, 250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000];
        assert_eq!(bounds, expect);
        assert_eq!(bound(u32::MAX), Duration::from_millis(BACKOFF_MS_MAX));
    }

    #[test]
    fn a_wait_is_anywhere_below_the_bound_and_never_shorter_than_asked() {
        let waits: Vec<_> = (0..2000).map(|_| wait(3, None)).collect();
        assert!(waits.iter().all(|w| *w <= bound(3)));
        assert!(waits.iter().any(|w| *w < bound(3) / 4));
        assert!(waits.iter().any(|w| *w > bound(3) * 3 / 4));
        let asked = Duration::from_secs(7);
        assert_eq!(wait(1, Some(asked)), asked);
    }
}
