//! Collects events into batches. A batch closes at `events_max` events, at `bytes_max` bytes, or
//! `linger_ms` milliseconds after its first event.
//!
//! Nothing here waits: the worker says what time it is and asks what is closed.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::spool::RecordId;
use crate::upstream::{Batch, BatchConfig};

/// An event as it comes from the spool. The type of its id is a parameter, so that tests can make
/// ids.
#[derive(Debug, Clone)]
pub struct Arrival<T = RecordId> {
    pub id: T,
    pub record: Bytes,
}

/// Collects the events of one queue into batches.
#[derive(Debug)]
pub struct Batcher<T = RecordId> {
    config: BatchConfig,
    /// All events that are in no closed batch, and when they arrived; the first `open` of them are
    /// the open batch.
    events: VecDeque<(Instant, Arrival<T>)>,
    open: usize,
    open_bytes: usize,
    /// The [`weight`]s of the events behind the open batch, in bytes.
    behind_bytes: usize,
}

impl<T> Batcher<T> {
    /// A batcher without events.
    pub fn new(config: BatchConfig) -> Batcher<T> {
        Batcher { config, events: VecDeque::new(), open: 0, open_bytes: 0, behind_bytes: 0 }
    }

    /// Uses these limits from now on, for the open batch, too.
    pub fn set_config(&mut self, config: BatchConfig) {
        self.config = config;
        self.behind_bytes = self.events.iter().map(|(_, arrival)| weight(arrival)).sum();
        (self.open, self.open_bytes) = (0, 0);
        self.grow();
    }

    /// Adds an event that arrived at `now`.
    pub fn push(&mut self, arrival: Arrival<T>, now: Instant) {
        self.behind_bytes += weight(&arrival);
        self.events.push_back((now, arrival));
        self.grow();
    }

    /// The first event of the open batch.
    pub fn first(&self) -> Option<&Arrival<T>> {
        self.events.front().map(|(_, arrival)| arrival)
    }

    /// Bytes of the events that arrived for batches after the open one.
    pub fn behind_bytes(&self) -> usize {
        self.behind_bytes
    }

    /// Whether the open batch can take no further event.
    pub fn is_full(&self) -> bool {
        self.open < self.events.len() || self.open >= self.config.events_max
    }

    /// When the open batch closes if no further event comes. `None`: it holds no event.
    pub fn closes_at(&self) -> Option<Instant> {
        let (arrived_at, _) = self.events.front()?;
        let linger = Duration::from_millis(self.config.linger_ms);
        Some(if self.is_full() { *arrived_at } else { *arrived_at + linger })
    }

    /// The events of a batch, if one is closed by now.
    pub fn take_closed(&mut self, now: Instant) -> Option<Vec<Arrival<T>>> {
        self.closes_at().filter(|at| *at <= now)?;
        let batch = self.events.drain(..self.open).map(|(_, arrival)| arrival).collect();
        (self.open, self.open_bytes) = (0, 0);
        self.grow();
        Some(batch)
    }

    /// Takes out the first event for which `wanted` holds.
    pub fn take_first(&mut self, wanted: impl Fn(&Arrival<T>) -> bool) -> Option<Arrival<T>> {
        let at = self.events.iter().position(|(_, arrival)| wanted(arrival))?;
        let (_, taken) = self.events.remove(at)?;
        match at < self.open {
            true => {
                self.open -= 1;
                self.open_bytes -= weight(&taken);
                self.grow();
            }
            false => self.behind_bytes -= weight(&taken),
        }
        Some(taken)
    }

    /// Moves events into the open batch as far as it has room. One event always has.
    fn grow(&mut self) {
        let bytes_max = usize::try_from(self.config.bytes_max.as_u64()).unwrap_or(usize::MAX);
        while let Some((_, next)) = self.events.get(self.open) {
            let bytes = self.open_bytes + weight(next);
            let fits = self.open < self.config.events_max && bytes <= bytes_max;
            if self.open > 0 && !fits {
                return;
            }
            self.behind_bytes -= weight(next);
            self.open_bytes = bytes;
            self.open += 1;
        }
    }
}

/// What an event adds to the size of a batch, in bytes.
fn weight<T>(arrival: &Arrival<T>) -> usize {
    arrival.record.len() + Batch::EVENT_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytesize::ByteSize;

    const OVERHEAD: usize = Batch::EVENT_OVERHEAD_BYTES;

    fn arrival(bytes: usize) -> Arrival<()> {
        Arrival { id: (), record: Bytes::from(vec![b'x'; bytes]) }
    }

    fn config(events_max: usize, bytes_max: usize, linger_ms: u64) -> BatchConfig {
        BatchConfig { events_max, bytes_max: ByteSize(bytes_max as u64), linger_ms }
    }

    #[tokio::test]
    async fn other_limits_count_for_the_open_batch() {
        let now = Instant::now();
        let mut batcher = Batcher::new(config(10, 1 << 20, 600_000));
        (0..5).for_each(|_| batcher.push(arrival(1), now));
        assert!(batcher.take_closed(now).is_none());
        batcher.set_config(config(2, 1 << 20, 600_000));
        let sizes = [(); 3].map(|()| batcher.take_closed(now).map(|batch| batch.len()));
        assert_eq!(sizes, [Some(2), Some(2), None]);
        batcher.set_config(config(2, 1 << 20, 0));
        assert_eq!(batcher.take_closed(now).map(|batch| batch.len()), Some(1));
        assert_eq!(batcher.behind_bytes(), 0);
    }

    /// Events of these sizes arrive at once: how many does each batch hold? The last one closes
    /// when it has lingered.
    async fn check(config: BatchConfig, sizes: &[usize], expect: &[usize]) {
        let now = Instant::now();
        let linger = Duration::from_millis(config.linger_ms);
        let mut batcher = Batcher::new(config);
        sizes.iter().for_each(|bytes| batcher.push(arrival(*bytes), now));
        let mut batches = Vec::new();
        while batcher.is_full() {
            batches.push(batcher.take_closed(now).expect("full").len());
        }
        assert_eq!(batcher.behind_bytes(), 0);
        if let Some(at) = batcher.closes_at() {
            assert_eq!(at, now + linger);
            batches.push(batcher.take_closed(at).expect("lingered").len());
        }
        assert!(batcher.take_closed(now + 2 * linger).is_none());
        assert_eq!(batches, expect);
    }

    #[tokio::test]
    async fn a_batch_closes_at_its_number_of_events() {
        check(config(3, 1 << 20, 1000), &[1; 8], &[3, 3, 2]).await;
        check(config(1, 1 << 20, 1000), &[1; 3], &[1, 1, 1]).await;
        check(config(3, 1 << 20, 0), &[1; 3], &[3]).await;
        check(config(3, 1 << 20, 0), &[1; 2], &[2]).await;
    }

    #[tokio::test]
    async fn a_batch_closes_at_its_bytes_and_not_one_later() {
        let two = 2 * (100 + OVERHEAD);
        check(config(100, two, 1000), &[100; 5], &[2, 2, 1]).await;
        check(config(100, two - 1, 1000), &[100; 3], &[1, 1, 1]).await;
        check(config(100, two + 1, 1000), &[100; 4], &[2, 2]).await;
    }

    #[tokio::test]
    async fn an_event_larger_than_a_batch_travels_alone() {
        check(config(100, 1000, 1000), &[10, 5000, 10, 10], &[1, 1, 2]).await;
    }

    #[tokio::test]
    async fn a_batch_closes_when_its_first_event_has_waited_long_enough() {
        let began = Instant::now();
        let mut batcher = Batcher::new(config(100, 1 << 20, 1000));
        for n in 0..10 {
            let now = began + n * Duration::from_millis(300);
            if let Some(batch) = batcher.take_closed(now) {
                assert_eq!((n, batch.len()), (4, 4));
                return;
            }
            batcher.push(arrival(1), now);
        }
        panic!("it never closed");
    }

    #[tokio::test]
    async fn what_waited_behind_a_batch_does_not_linger_once_more() {
        let began = Instant::now();
        let mut batcher = Batcher::new(config(2, 1 << 20, 1000));
        (0..3).for_each(|_| batcher.push(arrival(1), began));
        let late = began + Duration::from_secs(5);
        let mut take = || batcher.take_closed(late).map(|batch| batch.len());
        assert_eq!([take(), take(), take()], [Some(2), Some(1), None]);
    }

    #[tokio::test]
    async fn an_event_that_is_taken_out_makes_room_for_the_next() {
        let now = Instant::now();
        let mut batcher = Batcher::new(config(2, 1 << 20, 1000));
        [10, 20, 30, 40].iter().for_each(|bytes| batcher.push(arrival(*bytes), now));
        let mut take = |bytes| batcher.take_first(|a| a.record.len() == bytes).is_some();
        assert_eq!([take(10), take(10), take(40)], [true, false, true]);
        assert_eq!((batcher.is_full(), batcher.behind_bytes()), (true, 0));
        assert_eq!(batcher.take_closed(now).map(|batch| batch.len()), Some(2));
        assert!(batcher.first().is_none());
    }

    #[tokio::test]
    async fn what_comes_behind_a_closed_batch_is_counted() {
        let now = Instant::now();
        let mut batcher = Batcher::new(config(2, 1 << 20, 1000));
        (0..5).for_each(|_| batcher.push(arrival(100), now));
        assert_eq!(batcher.behind_bytes(), 3 * (100 + OVERHEAD));
        assert_eq!(batcher.take_closed(now).map(|batch| batch.len()), Some(2));
        assert_eq!(batcher.behind_bytes(), 100 + OVERHEAD);
    }
}
