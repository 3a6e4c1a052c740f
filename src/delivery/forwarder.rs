//! Starts and stops the delivery workers, and keeps their lag gauges up to date.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntGaugeVec;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::options::{Options, Route};
use super::status::Status;
use super::worker::{self, DeliveryWorker, WorkerDeps};

/// Interval between two updates of the lag gauges.
const LAG_REFRESH: Duration = Duration::from_secs(1);

/// All routes, running.
pub struct Forwarder {
    workers: Vec<Arc<DeliveryWorker>>,
    lag_seconds: IntGaugeVec,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// Starts all routes on the current tokio runtime.
///
/// # Panics
///
/// Outside of a tokio runtime with timers and I/O.
pub fn start(routes: Vec<Route>, options: Options) -> Forwarder {
    let (stop, stopping) = watch::channel(false);
    let mut workers = Vec::new();
    let mut tasks = Vec::new();
    for route in routes {
        let deps = WorkerDeps::new(&route, &options, stopping.clone());
        let worker = Arc::new(DeliveryWorker::new(deps));
        workers.push(Arc::clone(&worker));
        tasks.push(tokio::spawn(worker::run(worker, route.reader, route.batch)));
    }
    let lag_seconds = options.meters.lag_seconds;
    tasks.push(tokio::spawn(refresh_lag(workers.clone(), lag_seconds.clone(), stopping)));
    Forwarder { workers, lag_seconds, stop, tasks: Mutex::new(tasks) }
}

impl Forwarder {
    /// How each upstream is doing, in the order of the routes.
    pub fn status(&self) -> Vec<Status> {
        set_lag(&self.workers, &self.lag_seconds);
        self.workers.iter().map(|worker| worker.status()).collect()
    }

    /// Stops delivery. Batches that wait stay in the spool; an attempt in flight gets
    /// [`STOP_ATTEMPT_MS_MAX`](worker::STOP_ATTEMPT_MS_MAX) to be answered. No event is lost:
    /// events that are not acknowledged are read again after the next start. Idempotent.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has stopped, too.
            let _ = task.await;
        }
    }
}

async fn refresh_lag(
    workers: Vec<Arc<DeliveryWorker>>,
    gauge: IntGaugeVec,
    mut stopping: watch::Receiver<bool>,
) {
    let stopped = stopping.wait_for(|stop| *stop);
    tokio::pin!(stopped);
    while tokio::time::timeout(LAG_REFRESH, stopped.as_mut()).await.is_err() {
        set_lag(&workers, &gauge);
    }
}

fn set_lag(workers: &[Arc<DeliveryWorker>], gauge: &IntGaugeVec) {
    for worker in workers {
        let seconds = i64::try_from(worker.lag_seconds()).unwrap_or(i64::MAX);
        gauge.with_label_values(&[worker.name()]).set(seconds);
    }
}
