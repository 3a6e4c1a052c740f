//! Limits the rate of events of each portal.
//!
//! The algorithm is governor's GCRA. The state is one number for each portal, in an array that is
//! allocated with the list. It is therefore bounded and needs no lock and no cleanup, and a reload
//! copies it; events that are counted in the milliseconds of the copy are forgotten.
//!
//! Events are counted per process: with several edges, a portal has its full rate at each of them.

use std::{
    collections::HashMap,
    ops::Add,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Reference, middleware::NoOpMiddleware, nanos::Nanos,
    state::StateStore,
};

use super::rules::Rate;
use crate::clock::Clock;

/// The rates of a list, and the counter of each portal.
pub(super) struct Meters {
    limiters: Vec<(Rate, Limiter)>,
    cells: Cells,
    /// All times in the cells are measured from here.
    origin: Duration,
}

type Limiter = RateLimiter<usize, Cells, Ticks, NoOpMiddleware<Tick>>;

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

impl Meters {
    /// Counters for `cells` portals, all unused.
    pub(super) fn new(rates: Rates, cells: usize, clock: &Arc<dyn Clock>) -> Meters {
        let cells = Cells((0..cells).map(|_| AtomicU64::new(0)).collect());
        let origin = clock.monotonic();
        let limiter = |rate: Rate| {
            let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
            let ticks = Ticks { clock: Arc::clone(clock), origin };
            (rate, RateLimiter::new(quota, cells.clone(), ticks))
        };
        Meters { limiters: rates.list.into_iter().map(limiter).collect(), cells, origin }
    }

    pub(super) fn rate(&self, meter: Meter) -> Rate {
        self.limiters[meter.0 as usize].0
    }

    /// Counts one event of a portal. False if its rate is exceeded.
    #[inline]
    pub(super) fn take(&self, meter: Meter, cell: usize) -> bool {
        let (_, limiter) = &self.limiters[meter.0 as usize];
        limiter.check_key(&cell).is_ok()
    }

    /// Copies the counter of a portal from an earlier list.
    pub(super) fn carry(&self, cell: usize, earlier: &Meters, earlier_cell: usize) {
        let used = earlier.cells.0[earlier_cell].load(Ordering::Relaxed);
        // Each list has its own origin. A time before the new one has passed: 0 means the same.
        let between = self.origin.saturating_sub(earlier.origin).as_nanos();
        let used = used.saturating_sub(u64::try_from(between).unwrap_or(u64::MAX));
        self.cells.0[cell].store(used, Ordering::Relaxed);
    }
}

/// For each portal, the time in nanoseconds until which its events so far use up its rate.
#[derive(Clone)]
struct Cells(Arc<[AtomicU64]>);

impl StateStore for Cells {
    type Key = usize;

    fn measure_and_replace<T, F, E>(&self, cell: &usize, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // Relaxed: no other memory depends on this number.
        let cell = &self.0[*cell];
        let mut used = cell.load(Ordering::Relaxed);
        loop {
            let (outcome, next) = decide(Some(Nanos::new(used)))?;
            match cell.compare_exchange_weak(
                used,
                next.as_u64(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(outcome),
                Err(now) => used = now,
            }
        }
    }
}

/// Adapts this crate's clock to governor's trait.
struct Ticks {
    clock: Arc<dyn Clock>,
    origin: Duration,
}

impl governor::clock::Clock for Ticks {
    type Instant = Tick;

    fn now(&self) -> Tick {
        let elapsed = self.clock.monotonic().saturating_sub(self.origin);
        Tick(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// Nanoseconds since the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u64);

impl Add<Nanos> for Tick {
    type Output = Tick;

    fn add(self, nanos: Nanos) -> Tick {
        Tick(self.0.saturating_add(nanos.as_u64()))
    }
}

impl Reference for Tick {
    fn duration_since(&self, earlier: Tick) -> Nanos {
        Nanos::new(self.0.saturating_sub(earlier.0))
    }

    fn saturating_sub(&self, nanos: Nanos) -> Tick {
        Tick(self.0.checked_sub(nanos.as_u64()).unwrap_or(self.0))
    }
}
