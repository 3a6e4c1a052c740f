//! What a gate does behind the requests: delivering, and watching the portal list.
//!
//! On a small runtime of the gate's own, so that a host needs to start nothing, and a slow upstream
//! never takes a worker from the request path. Nothing here is waited for by a request.

use super::{Forwarder, Route};
use crate::delivery;
use crate::policy::portals::Portals;
use std::io;
use std::sync::{Mutex, PoisonError};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Threads that deliver: encoding and compressing half a million events a second needs no more.
const THREADS: usize = 1;
/// Threads that encode batches and read lists. Each one that ever ran keeps memory of its own.
const BLOCKING_THREADS_MAX: usize = 4;

/// Delivery and the watch on the portal list, on a runtime of their own.
pub(crate) struct Delivery {
    runtime: Mutex<Option<Runtime>>,
    forwarder: Forwarder,
    stop: watch::Sender<bool>,
}

impl Delivery {
    /// Starts both.
    pub fn start(
        routes: Vec<Route>,
        options: delivery::Options,
        portals: Portals,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .max_blocking_threads(BLOCKING_THREADS_MAX)
            .thread_name("delivery")
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let guard = runtime.enter();
        let forwarder = delivery::start(routes, options);
        runtime.spawn(portals.watch(stopped));
        drop(guard);
        Ok(Self { runtime: Mutex::new(Some(runtime)), forwarder, stop })
    }

    pub fn forwarder(&self) -> &Forwarder {
        &self.forwarder
    }

    /// Stops both; what was on its way is given a moment. Idempotent.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
        let runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.block_on(self.forwarder.stop());
            runtime.shutdown_background();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which async code must not do.
        let runtime = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}
