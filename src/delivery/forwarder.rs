//! Starts and stops the delivery workers, and shows how they are doing.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::monitor::Monitor;
use super::options::{Options, Route, RouteLimits};
use super::status::Status;
use super::worker::{DeliveryWorker, Stop};

/// The handle to all routes, which are running.
pub struct Forwarder {
    monitors: Vec<Arc<Monitor>>,
    /// The limits in force, in the order of the routes.
    limits: Vec<watch::Sender<RouteLimits>>,
    stop: watch::Sender<Stop>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// The handle to all routes, and their workers, which do not run yet. The caller runs each of them
/// on a runtime of its choice.
pub fn prepare(routes: Vec<Route>, options: &Options) -> (Forwarder, Vec<DeliveryWorker>) {
    let (stop, stopping) = watch::channel(None);
    let mut limits = Vec::new();
    let worker = |route: Route| {
        let Route { batch, attempts_max, .. } = &route;
        let own = RouteLimits { batch: batch.clone(), attempts_max: *attempts_max };
        let (sender, in_force) = watch::channel(own);
        limits.push(sender);
        DeliveryWorker::new(route, options, in_force, stopping.clone())
    };
    let workers: Vec<DeliveryWorker> = routes.into_iter().map(worker).collect();
    let monitors = workers.iter().map(DeliveryWorker::monitor).collect();
    (Forwarder { monitors, limits, stop, tasks: Mutex::default() }, workers)
}

/// Starts all routes on the current tokio runtime.
///
/// # Panics
///
/// Outside of a tokio runtime with timers and I/O.
pub fn start(routes: Vec<Route>, options: Options) -> Forwarder {
    let (forwarder, workers) = prepare(routes, &options);
    *forwarder.tasks.lock() =
        workers.into_iter().map(|worker| tokio::spawn(worker.run())).collect();
    forwarder
}

impl Forwarder {
    /// How each upstream is doing, in the order of the routes.
    pub fn status(&self) -> Vec<Status> {
        self.monitors.iter().map(|monitor| monitor.status()).collect()
    }

    /// Puts other limits in force for each route, by the upstream's name. Batches that are closed
    /// stay as they are.
    pub fn set_limits(&self, of: impl Fn(&str) -> RouteLimits) {
        for (monitor, limits) in self.monitors.iter().zip(&self.limits) {
            let new = of(&monitor.name);
            limits.send_if_modified(|limits| {
                let is_other = *limits != new;
                *limits = new;
                is_other
            });
        }
    }

    /// Begins to stop delivery: batches that wait stay in the spool, and attempts under way may end
    /// `within` this time. A later call changes nothing.
    pub fn begin_stop(&self, within: Duration) {
        self.stop.send_if_modified(|stop| {
            let begins = stop.is_none();
            stop.get_or_insert_with(|| Instant::now() + within);
            begins
        });
    }

    /// Stops delivery as [`Forwarder::begin_stop`] says, and waits for the routes that
    /// [`start`] started. No event is lost: events that are not acknowledged are read again after
    /// the next start. Idempotent.
    pub async fn stop(&self, within: Duration) {
        self.begin_stop(within);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has stopped, too.
            let _ = task.await;
        }
    }
}
