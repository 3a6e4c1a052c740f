//! The delivery threads: one for each upstream, and one that watches the portal list.
//!
//! Each runs a small tokio runtime of its own, with blocking threads of its own. So an upstream
//! that hangs, in a system call, a lock or a name lookup, occupies nothing that another upstream or
//! the request path needs. The threads belong to the gate: a host does not have to start a runtime.
//! A host that names a runtime of its own gets them as tasks there.

use super::forwarder::{self, Forwarder};
use super::options::{Options, Route};
use crate::policy::portals::Portals;
use parking_lot::Mutex;
use std::io;
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;

/// Threads of each upstream that encode batches, look names up and write dead letters, and of the
/// portal list that read it. Bounded, since each thread keeps memory of its own.
const BLOCKING_THREADS_MAX: usize = 4;

/// Polls of tasks between two looks at the clock and the sockets. With the default (61), a server
/// that sends without a pause delays the timeout of its own request.
const EVENT_INTERVAL: u32 = 1;

/// Delivery and the watch on the portal list, running.
pub(crate) struct Delivery {
    running: Mutex<Vec<Running>>,
    forwarder: Forwarder,
    stop: watch::Sender<bool>,
    /// The portal policy whose list is watched.
    portals: watch::Sender<Portals>,
}

/// A worker, or the watch on the portal list.
struct Running {
    name: String,
    on: RunsOn,
}

enum RunsOn {
    Thread(thread::JoinHandle<()>),
    /// A task on the host's runtime.
    Task(tokio::task::JoinHandle<()>),
}

impl Running {
    fn is_finished(&self) -> bool {
        match &self.on {
            RunsOn::Thread(thread) => thread.is_finished(),
            RunsOn::Task(task) => task.is_finished(),
        }
    }
}

impl Delivery {
    /// Starts delivery and the watch on the portal list, on `runtime` if there is one, else on
    /// threads of their own.
    ///
    /// # Errors
    ///
    /// The operating system's, if it cannot start the threads.
    pub fn start(
        routes: Vec<Route>,
        options: Options,
        portals: Portals,
        runtime: Option<&Handle>,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (forwarder, workers) = forwarder::prepare(routes, &options);
        let (portals, watched) = watch::channel(portals);
        let watching = watch_latest(watched, stopped);
        let mut running = vec![spawn("portals".to_owned(), watching, runtime)?];
        for worker in workers {
            let name = format!("to {}", worker.name());
            running.push(spawn(name, worker.run(), runtime)?);
        }
        Ok(Self { running: Mutex::new(running), forwarder, stop, portals })
    }

    /// Watches the list of this policy from now on, instead of that of the earlier one. Nothing
    /// happens where it is the same policy.
    pub fn watch(&self, portals: &Portals) {
        self.portals.send_if_modified(|watched| {
            let is_other = !watched.is_same(portals);
            if is_other {
                *watched = portals.clone();
            }
            is_other
        });
    }

    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Stops both: attempts under way may end within the first two thirds of `limit`, and what
    /// hangs is left behind after `limit`. Idempotent.
    pub fn stop(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let _ = self.stop.send(true);
        self.forwarder.begin_stop(limit * 2 / 3);
        for running in std::mem::take(&mut *self.running.lock()) {
            while !running.is_finished() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let name = running.name;
                    log::error!("delivery: the thread {name:?} hangs and is left behind");
                    break;
                }
                thread::park_timeout(left.min(Duration::from_millis(1)));
            }
        }
    }
}

/// Watches the list of the latest policy until the stop.
async fn watch_latest(mut portals: watch::Receiver<Portals>, stopped: watch::Receiver<bool>) {
    loop {
        let latest = portals.borrow_and_update().clone();
        tokio::select! {
            () = latest.watch(stopped.clone()) => return,
            // The sender lives as long as this task is to run.
            Ok(()) = portals.changed() => {}
        }
    }
}

/// Runs `task` on the host's runtime, or on a thread and a runtime of its own. Does not wait for
/// blocking calls that are still under way when the task ends.
fn spawn<F>(name: String, task: F, runtime: Option<&Handle>) -> io::Result<Running>
where
    F: Future<Output = ()> + Send + 'static,
{
    if let Some(runtime) = runtime {
        return Ok(Running { name, on: RunsOn::Task(runtime.spawn(task)) });
    }
    let runtime: Runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .event_interval(EVENT_INTERVAL)
        .thread_name(&name)
        .enable_all()
        .build()?;
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        runtime.block_on(task);
        runtime.shutdown_background();
    })?;
    Ok(Running { name, on: RunsOn::Thread(thread) })
}
