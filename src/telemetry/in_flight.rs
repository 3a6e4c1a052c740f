//! Counts open connections and requests in flight.
//!
//! A graceful stop waits until both are 0. The spool skips its linger time when every open
//! connection has as many requests in flight as it may have, because no further request can arrive
//! then.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Counters of connections and of requests in flight; clones share them.
///
/// A request counts from before its verdict until its response is written or dropped.
///
/// ```
/// use pixelgate::custom::InFlight;
///
/// let in_flight = InFlight::default();
/// let guard = in_flight.enter();
/// assert_eq!(in_flight.count(), 1);
/// drop(guard);
/// assert_eq!(in_flight.count(), 0);
/// ```
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// The most requests that all open connections together may have in flight: 1 for each HTTP/1
    /// connection, and the stream limit for each HTTP/2 connection.
    stream_capacity: AtomicUsize,
    lingering: AtomicBool,
}

/// Counts one request in flight until it is dropped. Owns or borrows the counters.
///
/// ```
/// use pixelgate::custom::{InFlight, InFlightGuard};
///
/// /// The state of a proxy for each request.
/// struct Ctx {
///     _in_flight: InFlightGuard,
/// }
///
/// let in_flight = InFlight::default();
/// let ctx = Ctx { _in_flight: in_flight.enter() };
/// ```
#[derive(Debug)]
pub struct InFlightGuard<F: Borrow<InFlight> = InFlight>(F);

/// Counts one open connection until it is dropped.
pub struct Connected(InFlight);

/// Adds the further streams of an HTTP/2 connection to the stream capacity until it is dropped.
pub(crate) struct StreamCapacity(InFlight, usize);

impl InFlight {
    /// Counts one request until the guard is dropped.
    pub fn enter(&self) -> InFlightGuard {
        InFlightGuard::of(self.clone())
    }

    /// Does what [`InFlight::enter`] does, with a guard that borrows the counters.
    pub(crate) fn enter_here(&self) -> InFlightGuard<&InFlight> {
        InFlightGuard::of(self)
    }

    /// Number of requests in flight.
    pub fn count(&self) -> usize {
        self.0.requests.load(Relaxed)
    }

    /// Number of open connections, idle ones included.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// Whether every connection has as many requests in flight as it may have. Then no further
    /// request can arrive before a response is sent or a new connection is opened.
    pub fn all_connections_wait(&self) -> bool {
        self.0.requests.load(Relaxed) >= self.0.stream_capacity.load(Relaxed)
    }

    /// Keeps idle connections open during a stop, so that a request that a client sends at that
    /// moment is answered. The response says `Connection: close`. Call this before the stop; the
    /// caller decides how long the stop waits for these connections.
    pub fn linger(&self) {
        self.0.lingering.store(true, Relaxed);
    }

    /// Counts one connection until the guard is dropped.
    pub(crate) fn connect(&self) -> Connected {
        self.connected();
        Connected(self.clone())
    }

    /// Counts one connection. The caller must call [`InFlight::disconnected`] when it ends.
    pub(crate) fn connected(&self) {
        self.0.connections.fetch_add(1, Relaxed);
        self.0.stream_capacity.fetch_add(1, Relaxed);
    }

    /// Counts the end of a connection.
    pub(crate) fn disconnected(&self) {
        self.0.connections.fetch_sub(1, Relaxed);
        self.0.stream_capacity.fetch_sub(1, Relaxed);
    }

    /// Lets a connection that is counted already have `max` requests in flight, until the guard is
    /// dropped.
    pub(crate) fn streams(&self, max: u32) -> StreamCapacity {
        let more = usize::try_from(max).unwrap_or(usize::MAX).saturating_sub(1);
        self.0.stream_capacity.fetch_add(more, Relaxed);
        StreamCapacity(self.clone(), more)
    }

    /// Whether a stop closes idle connections at once.
    pub(crate) fn closes_idle(&self) -> bool {
        !self.0.lingering.load(Relaxed)
    }
}

impl<F: Borrow<InFlight>> InFlightGuard<F> {
    fn of(in_flight: F) -> Self {
        in_flight.borrow().0.requests.fetch_add(1, Relaxed);
        InFlightGuard(in_flight)
    }
}

impl<F: Borrow<InFlight>> Drop for InFlightGuard<F> {
    fn drop(&mut self) {
        self.0.borrow().0.requests.fetch_sub(1, Relaxed);
    }
}

impl Drop for StreamCapacity {
    fn drop(&mut self) {
        self.0.0.stream_capacity.fetch_sub(self.1, Relaxed);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.disconnected();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_connections_wait_when_each_has_all_its_requests() {
        let in_flight = InFlight::default();
        let first = in_flight.connect();
        assert!(!in_flight.all_connections_wait());
        let guard = in_flight.enter();
        assert!(in_flight.all_connections_wait());
        let second = in_flight.connect();
        assert!(!in_flight.all_connections_wait(), "the second connection may send a request");
        let streams = in_flight.streams(3);
        let more: Vec<InFlightGuard> = (0..2).map(|_| in_flight.enter()).collect();
        assert!(!in_flight.all_connections_wait(), "3 of 4");
        let last = in_flight.enter();
        assert!(in_flight.all_connections_wait());
        drop((more, last, streams, second));
        let here = in_flight.enter_here();
        assert_eq!(in_flight.count(), 2);
        drop(here);
        assert!(in_flight.all_connections_wait(), "stream capacity is released");
        drop((guard, first));
        assert_eq!((in_flight.count(), in_flight.connections()), (0, 0));
    }
}
