//! The inputs of delivery: its routes, and the options that all routes share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::dead_letters::DEAD_BYTES_MAX;
use super::retries::Backoff;
use crate::clock::{Clock, SystemClock};
use crate::spool::Reader;
use crate::telemetry::faults::Faults;
use crate::upstream::{BatchConfig, Upstream};

/// The default of [`Options::tick_every`].
const TICK: Duration = Duration::from_secs(1);

/// One upstream and the spool reader that feeds it.
pub struct Route {
    /// The upstream's name: its key in status, metrics and dead letters.
    pub name: String,
    /// The upstream that takes the batches.
    pub upstream: Arc<dyn Upstream>,
    /// When a batch is closed.
    pub batch: BatchConfig,
    /// After this many failed attempts the events of a batch are to blame, if the upstream took
    /// others meanwhile; 0: never (SPEC 7).
    pub attempts_max: u32,
    /// The spool's reader for this upstream.
    pub reader: Reader,
}

/// The settings of a running route that a reload changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteLimits {
    /// See [`Route::batch`].
    pub batch: BatchConfig,
    /// See [`Route::attempts_max`].
    pub attempts_max: u32,
}

/// The options that all routes share.
pub struct Options {
    /// The folder of the dead letters.
    pub dead_dir: PathBuf,
    /// Largest size in bytes of each upstream's dead letters.
    pub dead_bytes_max: u64,
    /// Gives the time for the lag and for dead letters.
    pub clock: Arc<dyn Clock>,
    /// The metrics to update.
    pub meters: Meters,
    /// Where conditions that need an operator are raised.
    pub faults: Faults,
    /// Gives the waits between attempts.
    pub backoff: Backoff,
    /// Interval between two updates of lag, state and faults. A worker also looks for work then, so
    /// that a short interval hides a lost wake-up: the simulation of delivery sets a long one.
    pub tick_every: Duration,
}

/// The metrics that delivery updates, labelled as SPEC 8 says. The caller registers them.
#[derive(Debug, Clone)]
pub struct Meters {
    /// `pixelgate_delivered_events_total{upstream}`.
    pub delivered: IntCounterVec,
    /// `pixelgate_dead_events_total{upstream}`.
    pub dead: IntCounterVec,
    /// `pixelgate_batches_total{upstream,outcome}`: attempts, by outcome.
    pub batches: IntCounterVec,
    /// `pixelgate_delivery_lag_seconds{upstream}`: age of the oldest event that waits.
    pub lag_seconds: IntGaugeVec,
}

impl Options {
    /// Options with the system's clock and randomness, unregistered metrics and faults, and a
    /// bound of [`DEAD_BYTES_MAX`].
    pub fn new(dead_dir: impl Into<PathBuf>) -> Options {
        Options {
            dead_dir: dead_dir.into(),
            dead_bytes_max: DEAD_BYTES_MAX,
            clock: Arc::new(SystemClock),
            meters: Meters::unregistered(),
            faults: Faults::unregistered(),
            backoff: Backoff::default(),
            tick_every: TICK,
        }
    }
}

impl Meters {
    /// Metrics that belong to no registry.
    pub fn unregistered() -> Meters {
        let opts = |name: &str| Opts::new(name, name);
        let valid = "the names and labels below are valid, and every test of this module uses them";
        let counters = |name, labels: &[&str]| IntCounterVec::new(opts(name), labels).expect(valid);
        Meters {
            delivered: counters("delivered_events_total", &["upstream"]),
            dead: counters("dead_events_total", &["upstream"]),
            batches: counters("batches_total", &["upstream", "outcome"]),
            lag_seconds: IntGaugeVec::new(opts("delivery_lag_seconds"), &["upstream"])
                .expect(valid),
        }
    }
}
