//! Collects events into batches. A batch closes at `events_max` events, at `bytes_max` bytes, or
//! `linger_ms` milliseconds after its first event.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

use crate::spool::RecordId;
use crate::upstream::{Batch, BatchConfig};

/// An event as it comes from the spool. The type of the id is open so that tests can make ids.
#[derive(Debug, Clone)]
pub struct Arrival<T = RecordId> {
    pub id: T,
    pub record: Bytes,
}

/// Events that will be one batch. Holds at least one event.
#[derive(Debug)]
pub struct OpenBatch<T = RecordId> {
    pub arrivals: Vec<Arrival<T>>,
    bytes: usize,
}

/// Collects the events of one queue into batches.
#[derive(Debug)]
pub struct Batcher<T = RecordId> {
    config: BatchConfig,
    inbox: Receiver<Vec<Arrival<T>>>,
    /// Received, and in no batch yet. At most one message of the inbox.
    waiting: VecDeque<Arrival<T>>,
}

impl<T> Batcher<T> {
    /// Collects the events that arrive in `inbox`.
    pub fn new(config: BatchConfig, inbox: Receiver<Vec<Arrival<T>>>) -> Batcher<T> {
        Batcher { config, inbox, waiting: VecDeque::new() }
    }

    /// Waits for the next batch to close. `None` once the inbox is closed and empty.
    pub async fn next(&mut self) -> Option<OpenBatch<T>> {
        let first = loop {
            match self.waiting.pop_front() {
                Some(arrival) => break arrival,
                None => self.waiting.extend(self.inbox.recv().await?),
            }
        };
        let deadline = Instant::now() + Duration::from_millis(self.config.linger_ms);
        let mut open = OpenBatch::begin(first);
        loop {
            while let Some(arrival) = self.waiting.pop_front() {
                if !open.has_room(&arrival, &self.config) {
                    self.waiting.push_front(arrival);
                    return Some(open);
                }
                open.add(arrival);
            }
            if open.arrivals.len() >= self.config.events_max {
                return Some(open);
            }
            match timeout_at(deadline, self.inbox.recv()).await {
                Ok(Some(arrivals)) => self.waiting.extend(arrivals),
                // The inbox is closed, or the first event has waited for `linger_ms`.
                Ok(None) | Err(_) => return Some(open),
            }
        }
    }
}

impl<T> OpenBatch<T> {
    fn begin(first: Arrival<T>) -> OpenBatch<T> {
        let bytes = weight(&first);
        OpenBatch { arrivals: vec![first], bytes }
    }

    fn has_room(&self, arrival: &Arrival<T>, config: &BatchConfig) -> bool {
        let bytes_max = usize::try_from(config.bytes_max.as_u64()).unwrap_or(usize::MAX);
        self.arrivals.len() < config.events_max && self.bytes + weight(arrival) <= bytes_max
    }

    fn add(&mut self, arrival: Arrival<T>) {
        self.bytes += weight(&arrival);
        self.arrivals.push(arrival);
    }
}

#[cfg(test)]
impl<T> OpenBatch<T> {
    pub fn of_one(record: Bytes, id: T) -> OpenBatch<T> {
        OpenBatch::begin(Arrival { id, record })
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
    use tokio::sync::mpsc;

    const OVERHEAD: usize = Batch::EVENT_OVERHEAD_BYTES;

    fn arrivals(sizes: &[usize]) -> Vec<Arrival<()>> {
        let one = |&bytes: &usize| {
            let record = Bytes::from(vec![b'x'; bytes]);
            Arrival { id: (), record }
        };
        sizes.iter().map(one).collect()
    }

    fn config(events_max: usize, bytes_max: usize, linger_ms: u64) -> BatchConfig {
        BatchConfig { events_max, bytes_max: ByteSize(bytes_max as u64), linger_ms }
    }

    /// Events of these sizes arrive in these messages, all at once: how many does each batch hold?
    async fn check(config: BatchConfig, messages: &[&[usize]], expect: &[usize]) {
        let (outbox, inbox) = mpsc::channel(100);
        for message in messages {
            outbox.send(arrivals(message)).await.unwrap();
        }
        drop(outbox);
        let mut batcher = Batcher::new(config, inbox);
        let mut sizes = Vec::new();
        while let Some(closed) = batcher.next().await {
            sizes.push(closed.arrivals.len());
        }
        assert_eq!(sizes, expect);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_closes_at_its_number_of_events() {
        check(config(3, 1 << 20, 1000), &[&[1], &[1, 1, 1], &[1; 4]], &[3, 3, 2]).await;
        check(config(1, 1 << 20, 1000), &[&[1, 1], &[1]], &[1, 1, 1]).await;
        check(config(3, 1 << 20, 0), &[&[1; 3]], &[3]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_closes_at_its_bytes_and_not_one_later() {
        let two = 2 * (100 + OVERHEAD);
        check(config(100, two, 1000), &[&[100; 5]], &[2, 2, 1]).await;
        check(config(100, two - 1, 1000), &[&[100; 3]], &[1, 1, 1]).await;
        check(config(100, two + 1, 1000), &[&[100; 4]], &[2, 2]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_larger_than_a_batch_travels_alone() {
        check(config(100, 1000, 1000), &[&[10, 5000, 10, 10]], &[1, 1, 2]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_closes_when_its_first_event_has_waited_long_enough() {
        let (outbox, inbox) = mpsc::channel(100);
        let mut batcher = Batcher::new(config(100, 1 << 20, 1000), inbox);
        tokio::spawn(async move {
            // Every 300 ms, so that the events keep coming while the first one waits.
            for _ in 0..10 {
                outbox.send(arrivals(&[1])).await.unwrap();
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        });
        let start = Instant::now();
        let first = batcher.next().await.unwrap();
        assert_eq!(first.arrivals.len(), 4);
        assert_eq!(start.elapsed().as_millis(), 1000);
    }
}
