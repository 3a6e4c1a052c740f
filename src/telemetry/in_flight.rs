//! What is under way: what a stop waits for, and whether anyone could still ask.

use std::borrow::Borrow;
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
    /// Requests that may be under way at once on the connections that there are.
    seats: AtomicUsize,
    lingering: AtomicBool,
}

/// One request in flight; ends when dropped. Whoever does not outlive the counts may borrow them.
#[derive(Debug)]
pub struct InFlightGuard<F: Borrow<InFlight> = InFlight>(F);

/// One open connection; ends when dropped.
pub struct Connected(InFlight);

/// More requests that a connection may have at once than one; ends when dropped.
pub(crate) struct StreamCapacity(InFlight, usize);

impl InFlight {
    /// Counts one more, for as long as the answer lives.
    pub fn enter(&self) -> InFlightGuard {
        InFlightGuard::of(self.clone())
    }

    /// As [`InFlight::enter`], while this lives.
    pub(crate) fn enter_here(&self) -> InFlightGuard<&InFlight> {
        InFlightGuard::of(self)
    }

    /// How many requests there are.
    pub fn count(&self) -> usize {
        self.0.requests.load(Relaxed)
    }

    /// How many connections there are, idle ones included.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// Whether each connection has all the requests that it may have at once, so that none can
    /// come until one was answered or somebody new has come.
    pub fn is_everyone(&self) -> bool {
        self.0.requests.load(Relaxed) >= self.0.seats.load(Relaxed)
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
    pub(crate) fn connected(&self) {
        self.0.connections.fetch_add(1, Relaxed);
        self.0.seats.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        self.0.connections.fetch_sub(1, Relaxed);
        self.0.seats.fetch_sub(1, Relaxed);
    }

    /// A connection, which is counted already, may have so many requests at once.
    pub(crate) fn streams(&self, max: u32) -> StreamCapacity {
        let more = usize::try_from(max).unwrap_or(usize::MAX).saturating_sub(1);
        self.0.seats.fetch_add(more, Relaxed);
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
        self.0.0.seats.fetch_sub(self.1, Relaxed);
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
    fn everyone_is_there_when_each_connection_has_all_its_requests() {
        let in_flight = InFlight::default();
        let first = in_flight.connect();
        assert!(!in_flight.is_everyone());
        let busy = in_flight.enter();
        assert!(in_flight.is_everyone());
        let second = in_flight.connect();
        assert!(!in_flight.is_everyone(), "another connection may ask");
        let streams = in_flight.streams(3);
        let more: Vec<InFlightGuard> = (0..2).map(|_| in_flight.enter()).collect();
        assert!(!in_flight.is_everyone(), "3 of 4");
        let last = in_flight.enter();
        assert!(in_flight.is_everyone());
        drop((more, last, streams, second));
        let here = in_flight.enter_here();
        assert_eq!(in_flight.count(), 2);
        drop(here);
        assert!(in_flight.is_everyone(), "places are given back");
        drop((busy, first));
        assert_eq!((in_flight.count(), in_flight.connections()), (0, 0));
    }
}
