//! Gathering events into batches: a batch closes at `events_max`, `bytes_max` or `linger_ms`.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, timeout_at};

use crate::spool::Seat;
use crate::upstream::{Batch, BatchConfig};

/// An event as it comes from the spool.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub seat: Seat,
    pub record: Bytes,
    pub received_at_ms: u64,
}

/// Events that will be one batch. Holds at least one.
#[derive(Debug)]
pub struct Gathered {
    pub arrivals: Vec<Arrival>,
    bytes: usize,
}

/// Makes batches of what comes in.
#[derive(Debug)]
pub struct Gatherer {
    config: BatchConfig,
    inbox: Receiver<Vec<Arrival>>,
    /// Came in, and in no batch yet. Never more than one message of the inbox.
    waiting: VecDeque<Arrival>,
}

impl Gatherer {
    /// Gathers from `inbox`.
    pub fn new(config: BatchConfig, inbox: Receiver<Vec<Arrival>>) -> Gatherer {
        Gatherer { config, inbox, waiting: VecDeque::new() }
    }

    /// Waits for the next batch to close. `None` when the inbox has ended and is empty.
    pub async fn next(&mut self) -> Option<Gathered> {
        let first = loop {
            match self.waiting.pop_front() {
                Some(arrival) => break arrival,
                None => self.waiting.extend(self.inbox.recv().await?),
            }
        };
        let deadline = Instant::now() + Duration::from_millis(self.config.linger_ms);
        let mut open = Gathered::begin(first);
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
                // Ended or waited long enough.
                Ok(None) | Err(_) => return Some(open),
            }
        }
    }
}

impl Gathered {
    fn begin(first: Arrival) -> Gathered {
        let bytes = weight(&first);
        Gathered { arrivals: vec![first], bytes }
    }

    fn has_room(&self, arrival: &Arrival, config: &BatchConfig) -> bool {
        let bytes_max = usize::try_from(config.bytes_max.as_u64()).unwrap_or(usize::MAX);
        self.arrivals.len() < config.events_max && self.bytes + weight(arrival) <= bytes_max
    }

    fn add(&mut self, arrival: Arrival) {
        self.bytes += weight(&arrival);
        self.arrivals.push(arrival);
    }
}

fn weight(arrival: &Arrival) -> usize {
    arrival.record.len() + Batch::EVENT_OVERHEAD_BYTES
}
