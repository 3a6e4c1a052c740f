//! Forwarding: from the spool to the upstreams, each on a route of its own.
//!
//! A [`Route`] reads the spool, gathers batches, and keeps a bounded number of them on their
//! way until each event is delivered or a dead letter; only then is it acknowledged, and the
//! spool's cursor moves. Routes share nothing: one that is stuck holds back nobody else.
//!
//! What an attempt's outcome leads to is decided here (SPEC 7), the same for every kind of
//! upstream: wait and retry, split, halve, bury. Nothing here knows HTTP or files.
//!
//! Bounded, for each route: batches on their way ([`Upstream::concurrency_max`]), events read
//! ahead of them (one batch, and one more message), the waits, the log lines. How much the spool
//! holds changes none of it.

mod batches;
mod breaker;
pub mod dead_letters;
mod health;
mod in_flight_batch;
mod limiter;
mod retries;
pub(crate) mod threads;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, IntGaugeVec, Opts};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::{Clock, SystemClock};
use crate::spool::Reader;
use crate::upstream::Upstream;
use worker::{DeliveryWorker, WorkerDeps};

pub use crate::upstream::BatchConfig;
pub use health::State;
pub use retries::{BACKOFF_MS_MAX, BACKOFF_MS_MIN};

/// How long a stop waits for answers to what has been sent already. Attempts that are cut off
/// are made again after the next start, and then may arrive twice.
pub const STOP_ATTEMPT_MS_MAX: u64 = 1000;
/// How often the lag gauges are brought up to date.
const LAG_REFRESH: Duration = Duration::from_secs(1);

/// One upstream and where its events come from.
pub struct Route {
    /// The upstream's name: its key in status, metrics and dead letters.
    pub name: String,
    /// What takes the batches.
    pub upstream: Arc<dyn Upstream>,
    /// When a batch is closed.
    pub batch: BatchConfig,
    /// The spool's reader for this upstream.
    pub reader: Reader,
}

/// What all routes share.
pub struct Options {
    /// The folder of the dead letters.
    pub dead_dir: PathBuf,
    /// Size of each upstream's dead letters, at most.
    pub dead_bytes_max: u64,
    /// Tells lag and the time of dead letters.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub meters: Meters,
}

/// The metrics that forwarding keeps, labelled as SPEC 8 says. Handles: the owner registers.
#[derive(Debug, Clone)]
pub struct Meters {
    /// `pixelgate_delivered_events_total{upstream}`.
    pub delivered: IntCounterVec,
    /// `pixelgate_dead_events_total{upstream}`.
    pub dead: IntCounterVec,
    /// `pixelgate_batches_total{upstream,outcome}`: attempts, by how they ended.
    pub batches: IntCounterVec,
    /// `pixelgate_delivery_lag_seconds{upstream}`: age of the oldest event on its way.
    pub lag_seconds: IntGaugeVec,
}

/// All routes, running.
pub struct Forwarder {
    couriers: Vec<Arc<DeliveryWorker>>,
    lag_seconds: IntGaugeVec,
    stop: watch::Sender<bool>,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

/// How one upstream is doing.
#[derive(Debug, Clone)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its state.
    pub state: State,
    /// How long it has not worked, in seconds; `None` while it does.
    pub trouble_seconds: Option<u64>,
    /// Age in seconds of the oldest event on its way; 0 when there is none.
    pub lag_seconds: u64,
    /// The last error ever. Holds nothing that an event or an answer brought.
    pub last_error: Option<String>,
    /// Attempts since start, by how they ended.
    pub outcomes: Vec<(&'static str, u64)>,
}

impl Options {
    /// The system's clock, metrics that nobody scrapes, the default bound.
    pub fn new(dead_dir: impl Into<PathBuf>) -> Options {
        Options {
            dead_dir: dead_dir.into(),
            dead_bytes_max: dead_letters::DEAD_BYTES_MAX,
            clock: Arc::new(SystemClock),
            meters: Meters::unregistered(),
        }
    }
}

impl Meters {
    /// Counters of their own, for who has no registry.
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

/// Starts all routes on the runtime that this is called in.
///
/// # Panics
///
/// Outside of a tokio runtime with timers and I/O.
pub fn start(routes: Vec<Route>, options: Options) -> Forwarder {
    let (stop, stopping) = watch::channel(false);
    let mut couriers = Vec::new();
    let mut tasks = Vec::new();
    for route in routes {
        let supplies = WorkerDeps::new(&route, &options, stopping.clone());
        let courier = Arc::new(DeliveryWorker::new(supplies));
        couriers.push(Arc::clone(&courier));
        tasks.push(tokio::spawn(worker::run(courier, route.reader, route.batch)));
    }
    let lag_seconds = options.meters.lag_seconds;
    tasks.push(tokio::spawn(refresh_lag(couriers.clone(), lag_seconds.clone(), stopping)));
    Forwarder { couriers, lag_seconds, stop, tasks: tasks.into() }
}

async fn refresh_lag(
    couriers: Vec<Arc<DeliveryWorker>>,
    gauge: IntGaugeVec,
    mut stopping: watch::Receiver<bool>,
) {
    let stopped = stopping.wait_for(|stop| *stop);
    tokio::pin!(stopped);
    while tokio::time::timeout(LAG_REFRESH, stopped.as_mut()).await.is_err() {
        set_lag(&couriers, &gauge);
    }
}

fn set_lag(couriers: &[Arc<DeliveryWorker>], gauge: &IntGaugeVec) {
    for courier in couriers {
        let seconds = i64::try_from(courier.lag_seconds()).unwrap_or(i64::MAX);
        gauge.with_label_values(&[courier.name()]).set(seconds);
    }
}

impl Forwarder {
    /// How each upstream is doing, in the order of the routes.
    pub fn status(&self) -> Vec<Status> {
        set_lag(&self.couriers, &self.lag_seconds);
        self.couriers.iter().map(|c| c.status()).collect()
    }

    /// Stops sending. What waits is left to the spool at once; what has been sent is given
    /// [`STOP_ATTEMPT_MS_MAX`] to be answered. Nothing is lost: what is not acknowledged is
    /// read again after the next start. Idempotent.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = {
            // Nothing panics while it is held.
            let mut tasks = self.tasks.lock().unwrap_or_else(|e| e.into_inner());
            std::mem::take(&mut *tasks)
        };
        for task in tasks {
            // A task that panicked has stopped, too.
            let _ = task.await;
        }
    }
}
