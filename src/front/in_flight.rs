//! What a stop waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Counts what a stop waits for: requests between their first judgement and the end of their
/// answer, and the connections on which they come.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    lingering: AtomicBool,
}

/// One request in flight; ends when dropped.
#[derive(Debug)]
pub struct Busy(InFlight);

/// One open connection; ends when dropped.
pub struct Connected(InFlight);

impl InFlight {
    /// Counts one more, for as long as the answer lives.
    pub fn enter(&self) -> Busy {
        self.0.requests.fetch_add(1, Relaxed);
        Busy(self.clone())
    }

    /// How many requests there are.
    pub fn count(&self) -> usize {
        self.0.requests.load(Relaxed)
    }

    /// How many connections there are, idle ones included.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// Has idle connections live on through a stop, each until it was told by the answer to one
    /// more request that it closes: whoever is just sending is then answered. To be called
    /// before the stop; how long the stop waits for them is its caller's choice.
    pub fn linger(&self) {
        self.0.lingering.store(true, Relaxed);
    }

    /// Counts one more connection, for as long as what it gives lives.
    pub(crate) fn connect(&self) -> Connected {
        self.connected();
        Connected(self.clone())
    }

    /// Counts one more, whose end its owner tells.
    pub(super) fn connected(&self) {
        self.0.connections.fetch_add(1, Relaxed);
    }

    pub(super) fn disconnected(&self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }

    /// Whether a stop closes idle connections at once.
    pub(crate) fn closes_idle(&self) -> bool {
        !self.0.lingering.load(Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.disconnected();
    }
}
