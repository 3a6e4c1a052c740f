//! Rates: how many events of a portal are taken.
//!
//! The algorithm is governor's (GCRA); the state is kept here, one number a portal in a plain
//! array, made with the list and as long as it. So it is bounded, needs no lock and no cleaning up,
//! and a reload can carry it over; what is taken in the milliseconds of the carrying is forgotten.
//!
//! It counts per process: behind several edges a portal has its rate at each of them.

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

/// The rates of a list, and what each portal has used of its own.
pub(super) struct Meters {
    limiters: Vec<(Rate, Limiter)>,
    cells: Cells,
    /// The moment that all times in the cells count from.
    origin: Duration,
}

type Limiter = RateLimiter<usize, Cells, Ticks, NoOpMiddleware<Tick>>;

/// Which of a list's rates a portal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meter(u32);

/// The rates that a list mentions, each once.
#[derive(Default)]
pub(super) struct Rates {
    seen: HashMap<Rate, Meter>,
    list: Vec<Rate>,
}

impl Rates {
    pub(super) fn meter(&mut self, rate: Rate) -> Meter {
        *self.seen.entry(rate).or_insert_with(|| {
            self.list.push(rate);
            // A list's size in bytes bounds its rates far below this.
            Meter(self.list.len() as u32 - 1)
        })
    }
}

impl Meters {
    /// Meters for `cells` portals.
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

    /// Takes one event of a portal, if its rate has one left.
    #[inline]
    pub(super) fn take(&self, meter: Meter, cell: usize) -> bool {
        let (_, limiter) = &self.limiters[meter.0 as usize];
        limiter.check_key(&cell).is_ok()
    }

    /// Goes on where a portal stood in an earlier list.
    pub(super) fn carry(&self, cell: usize, earlier: &Meters, earlier_cell: usize) {
        let used = earlier.cells.0[earlier_cell].load(Ordering::Relaxed);
        // Times count from each list's own origin. One before it has passed, like 0.
        let between = self.origin.saturating_sub(earlier.origin).as_nanos();
        let used = used.saturating_sub(u64::try_from(between).unwrap_or(u64::MAX));
        self.cells.0[cell].store(used, Ordering::Relaxed);
    }
}

/// For each portal the time, in nanoseconds, until which its events so far use up its rate.
#[derive(Clone)]
struct Cells(Arc<[AtomicU64]>);

impl StateStore for Cells {
    type Key = usize;

    fn measure_and_replace<T, F, E>(&self, cell: &usize, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        // Relaxed: the number stands for itself, and nothing else is read by it.
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

/// This crate's clock as governor's.
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
