//! The lag of a route: the age of the oldest event in flight.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// Knows when the oldest event of each batch in flight was received.
#[derive(Debug, Default)]
pub struct LagTracker {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// For each batch in flight, when its oldest event was received, and a number that keeps
    /// batches of the same millisecond apart.
    batches: BTreeSet<(u64, u64)>,
    entered: u64,
}

/// Keeps a batch in its [`LagTracker`] until it is dropped.
#[derive(Debug)]
pub struct LagEntry {
    tracker: Arc<LagTracker>,
    key: (u64, u64),
}

impl LagTracker {
    /// When the oldest event in flight was received, in milliseconds since 1970.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.inner.lock().batches.first().map(|(received_ms, _)| *received_ms)
    }
}

impl LagEntry {
    /// Enters a batch whose oldest event was received at `received_ms`, in milliseconds since 1970.
    pub fn new(tracker: &Arc<LagTracker>, received_ms: u64) -> LagEntry {
        let mut inner = tracker.inner.lock();
        inner.entered += 1;
        let key = (received_ms, inner.entered);
        inner.batches.insert(key);
        drop(inner);
        LagEntry { tracker: Arc::clone(tracker), key }
    }
}

impl Drop for LagEntry {
    fn drop(&mut self) {
        self.tracker.inner.lock().batches.remove(&self.key);
    }
}
