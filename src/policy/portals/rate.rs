//! Limits the rate of events of each portal (SPEC 5, `rate`).
//!
//! The algorithm is GCRA (the generic cell rate algorithm of ITU-T I.371): each event advances the
//! portal's *theoretical arrival time* by one interval, and an event that comes more than a burst
//! before this time is refused. The state is one number for each portal, in an array that is
//! allocated with the list. So it is bounded, and needs no lock and no cleanup. A reload copies it;
//! events that are counted during the milliseconds of the copy are forgotten.
//!
//! Events are counted per process: with several edges, a portal has its full rate at each of them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::rules::Rate;
use crate::clock::Clock;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The rates of a list, and the counter of each portal.
pub(super) struct Meters {
    limits: Vec<Limit>,
    /// The theoretical arrival time of each portal's next event, in nanoseconds since `origin`.
    /// A time that has passed means that the whole burst is free.
    cells: Box<[AtomicU64]>,
    origin: Duration,
    clock: Arc<dyn Clock>,
}

/// A rate in the terms of the algorithm. Times are in nanoseconds.
struct Limit {
    rate: Rate,
    /// Time between events at the full rate.
    interval: u64,
    /// How early an event may come: one interval for each event of a burst but the first.
    tolerance: u64,
}

/// The index of a portal's rate in [`Meters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meter(u32);

/// The distinct rates of a list.
#[derive(Default)]
pub(super) struct Rates {
    seen: HashMap<Rate, Meter>,
    list: Vec<Rate>,
}

impl Rates {
    pub(super) fn meter(&mut self, rate: Rate) -> Meter {
        *self.seen.entry(rate).or_insert_with(|| {
            self.list.push(rate);
            // Cannot overflow: the size limit of a list keeps the rates far below 2^32.
            Meter(self.list.len() as u32 - 1)
        })
    }
}

impl Limit {
    fn new(rate: Rate) -> Limit {
        let interval = NANOS_PER_SECOND / u64::from(rate.per_second.get());
        // Cannot overflow: 10^9 times 2^32 is less than 2^63.
        Limit { rate, interval, tolerance: interval * u64::from(rate.burst.get() - 1) }
    }
}

impl Meters {
    /// Counters for `cells` portals, all unused.
    pub(super) fn new(rates: Rates, cells: usize, clock: &Arc<dyn Clock>) -> Meters {
        Meters {
            limits: rates.list.into_iter().map(Limit::new).collect(),
            cells: (0..cells).map(|_| AtomicU64::new(0)).collect(),
            origin: clock.monotonic(),
            clock: Arc::clone(clock),
        }
    }

    pub(super) fn rate(&self, meter: Meter) -> Rate {
        self.limits[meter.0 as usize].rate
    }

    /// Counts one event of a portal. False if its rate is exceeded.
    #[inline]
    pub(super) fn take(&self, meter: Meter, cell: usize) -> bool {
        let Limit { interval, tolerance, .. } = self.limits[meter.0 as usize];
        let now = self.clock.monotonic().saturating_sub(self.origin).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let latest = now.saturating_add(tolerance);
        let count = |due: u64| (due <= latest).then(|| due.max(now).saturating_add(interval));
        // Relaxed: no other memory depends on this number.
        self.cells[cell].fetch_update(Ordering::Relaxed, Ordering::Relaxed, count).is_ok()
    }

    /// Copies the counter of a portal from an earlier list.
    pub(super) fn carry(&self, cell: usize, earlier: &Meters, earlier_cell: usize) {
        let due = earlier.cells[earlier_cell].load(Ordering::Relaxed);
        // Each list has an origin of its own. A time before the new origin has passed, as 0 has.
        let between = self.origin.saturating_sub(earlier.origin).as_nanos();
        let due = due.saturating_sub(u64::try_from(between).unwrap_or(u64::MAX));
        self.cells[cell].store(due, Ordering::Relaxed);
    }
}
