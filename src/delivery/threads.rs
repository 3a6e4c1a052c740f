//! The delivery runtime: delivers batches, and watches the portal list, behind the requests.
//!
//! It is a small tokio runtime that belongs to the gate. A host does not have to start one, and a
//! slow upstream never occupies a worker thread of the request path. No request waits for this
//! runtime.

use super::forwarder::{self, Forwarder};
use super::options::{Options, Route};
use crate::policy::portals::Portals;
use parking_lot::Mutex;
use std::io;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Worker threads. One is enough to encode and compress half a million events a second.
const THREADS: usize = 1;
/// Threads that encode batches and read lists. Bounded, since each thread keeps memory of its own.
const BLOCKING_THREADS_MAX: usize = 4;

/// Delivery and the watch on the portal list, running.
pub(crate) struct Delivery {
    runtime: Mutex<Option<Runtime>>,
    forwarder: Forwarder,
    stop: watch::Sender<bool>,
}

impl Delivery {
    /// Starts delivery and the watch on the portal list.
    ///
    /// # Errors
    ///
    /// Where the operating system cannot start the threads.
    pub fn start(routes: Vec<Route>, options: Options, portals: Portals) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("delivery")
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let guard = runtime.enter();
        let forwarder = forwarder::start(routes, options);
        runtime.spawn(portals.watch(stopped));
        drop(guard);
        Ok(Self { runtime: Mutex::new(Some(runtime)), forwarder, stop })
    }

    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Stops both, and waits as [`Forwarder::stop`] says for attempts in flight. Idempotent.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            runtime.block_on(self.forwarder.stop());
            runtime.shutdown_background();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which async code must not do.
        let runtime = self.runtime.get_mut().take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}
