//! Limits the events of each portal in a UTC day (SPEC 5, `quota`).
//!
//! The count of each portal is one number in an array that is allocated with the list. It needs no
//! lock and no cleanup, and a reload copies it. The totals of the spool count accepted events over
//! restarts: [`Quotas::raise`] takes the count of the day from them at start, and again after this
//! process has taken over the totals of another one. Since these totals hold accepted events only,
//! an event that is counted here and not accepted in the end is taken off again.
//!
//! Events are counted per process: with several edges, a portal has its full quota at each of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::{Clock, DAY_MS};

/// The counts of each portal's accepted events, which outlive the process.
pub trait AcceptedByDay: Send + Sync {
    /// Events of this portal that were accepted on this UTC day, counted from 1970-01-01.
    fn accepted(&self, portal: u64, day: u32) -> u64;
    /// A number that changes when the counts of another process have been taken over.
    fn takeovers(&self) -> u64;
}

/// Bits of a cell that hold the events; the day is above.
const EVENTS_BITS: u32 = 40;
const EVENTS_MASK: u64 = (1 << EVENTS_BITS) - 1;

/// The counts of a list's portals.
pub(super) struct Quotas {
    /// For each portal, the day (upper bits) and the events that were counted on it (lower bits).
    cells: Box<[AtomicU64]>,
    clock: Arc<dyn Clock>,
}

impl Quotas {
    /// Counters for `cells` portals, all zero.
    pub(super) fn new(cells: usize, clock: &Arc<dyn Clock>) -> Quotas {
        let cells = (0..cells).map(|_| AtomicU64::new(0)).collect();
        Quotas { cells, clock: Arc::clone(clock) }
    }

    /// Counts one event of a portal. If its quota is used up, the error holds the seconds until the
    /// next UTC day, 1 to 86,400.
    pub(super) fn take(&self, cell: usize, per_day: u32) -> Result<(), u32> {
        let now_ms = self.clock.unix_ms();
        let day = now_ms / DAY_MS;
        let count = |packed: u64| {
            let (day, used) = begun(packed, day);
            (used < u64::from(per_day)).then(|| pack(day, used + 1))
        };
        // Relaxed: no other memory depends on this number.
        let taken = self.cells[cell].fetch_update(Relaxed, Relaxed, count);
        let left_ms = DAY_MS - now_ms % DAY_MS;
        taken.map(drop).map_err(|_| left_ms.div_ceil(1000) as u32)
    }

    /// Takes off an event that was counted and was not accepted.
    pub(super) fn give_back(&self, cell: usize) {
        let day = self.today();
        let count = |packed| {
            let (day, used) = begun(packed, day);
            used.checked_sub(1).map(|used| pack(day, used))
        };
        // Fails if the day has ended meanwhile: its count does not matter any more.
        _ = self.cells[cell].fetch_update(Relaxed, Relaxed, count);
    }

    /// The events that were counted today.
    pub(super) fn used(&self, cell: usize) -> u64 {
        begun(self.cells[cell].load(Relaxed), self.today()).1
    }

    /// Raises the count of today to `events`, if it is lower.
    pub(super) fn raise(&self, cell: usize, events: u64) {
        let today = self.today();
        let count = |packed| {
            let (day, used) = begun(packed, today);
            Some(pack(day, used.max(events.min(EVENTS_MASK))))
        };
        // The closure gives a number in any case, so this does not fail.
        _ = self.cells[cell].fetch_update(Relaxed, Relaxed, count);
    }

    /// Copies the count of a portal from an earlier list.
    pub(super) fn carry(&self, cell: usize, earlier: &Quotas, earlier_cell: usize) {
        self.cells[cell].fetch_max(earlier.cells[earlier_cell].load(Relaxed), Relaxed);
    }

    /// The UTC day, counted from 1970-01-01.
    pub(super) fn today(&self) -> u64 {
        self.clock.unix_ms() / DAY_MS
    }
}

fn pack(day: u64, events: u64) -> u64 {
    // 24 bits hold the days of 45,000 years.
    day << EVENTS_BITS | events
}

/// The day for which a cell counts, and the events of that day. If the clock was set back over
/// midnight, the day that had begun goes on, so that no day has its quota twice.
fn begun(packed: u64, today: u64) -> (u64, u64) {
    let day = packed >> EVENTS_BITS;
    if day == today || day == today + 1 { (day, packed & EVENTS_MASK) } else { (today, 0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::time::Duration;

    #[derive(Default)]
    struct Manual(Mutex<u64>);

    impl Clock for Manual {
        fn unix_ms(&self) -> u64 {
            *self.0.lock()
        }
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    #[test]
    fn a_day_has_its_events_and_the_next_one_begins_anew() {
        let manual = Arc::new(Manual::default());
        let clock: Arc<dyn Clock> = manual.clone();
        let quotas = Quotas::new(1, &clock);
        *manual.0.lock() = 20_000 * DAY_MS + 1;
        assert_eq!(quotas.take(0, 2), Ok(()));
        assert_eq!(quotas.take(0, 2), Ok(()));
        assert_eq!(quotas.take(0, 2), Err(86_400));
        quotas.give_back(0);
        assert_eq!((quotas.used(0), quotas.take(0, 2)), (1, Ok(())));
        *manual.0.lock() = 20_001 * DAY_MS - 1;
        assert_eq!(quotas.take(0, 2), Err(1));
        assert_eq!(quotas.take(0, 3), Ok(()), "the count is that of the portal, not of the rule");
        *manual.0.lock() += 1;
        quotas.give_back(0);
        assert_eq!((quotas.used(0), quotas.take(0, 1)), (0, Ok(())));
        quotas.raise(0, 5);
        quotas.raise(0, 4);
        assert_eq!((quotas.used(0), quotas.take(0, 5)), (5, Err(86_400)));
        let next = Quotas::new(1, &clock);
        next.carry(0, &quotas, 0);
        assert_eq!(next.used(0), 5);
    }

    #[test]
    fn a_clock_that_is_set_back_gives_no_quota_again() {
        let manual = Arc::new(Manual::default());
        let clock: Arc<dyn Clock> = manual.clone();
        let quotas = Quotas::new(1, &clock);
        *manual.0.lock() = 20_001 * DAY_MS + 1000;
        assert_eq!((quotas.take(0, 2), quotas.take(0, 2)), (Ok(()), Ok(())));
        *manual.0.lock() -= 3000;
        assert_eq!((quotas.used(0), quotas.take(0, 2)), (2, Err(2)));
        quotas.raise(0, 1);
        *manual.0.lock() += 3000;
        assert_eq!((quotas.used(0), quotas.take(0, 2)), (2, Err(86_399)));
        // A clock that was ahead by more than a day refuses no event once it is right again.
        *manual.0.lock() = 30_000 * DAY_MS;
        assert_eq!(quotas.take(0, 1), Ok(()));
        *manual.0.lock() = 20_001 * DAY_MS;
        quotas.raise(0, 1);
        assert_eq!(
            (quotas.used(0), quotas.take(0, 2), quotas.take(0, 2)),
            (1, Ok(()), Err(86_400))
        );
    }
}
