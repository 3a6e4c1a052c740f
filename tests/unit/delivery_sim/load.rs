//! The most attempts that a worker may have under way, as far as the upstream can know it.
//!
//! A worker begins with two attempts at a time, may begin one more for each that succeeds, and
//! halves that number, not below two, when an attempt meets backpressure. If there are more
//! attempts, the worker has not halved it.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// The most attempts that may be under way at once.
#[derive(Debug)]
pub struct Load {
    max: usize,
    bound: usize,
    successes: u64,
    /// How many attempts had succeeded when each of those under way began.
    begun: BTreeMap<u64, u64>,
    /// When the bound was last halved: the worker may not know of it at the same moment.
    pressed_at: Option<Instant>,
}

impl Load {
    /// Two at a time, and never more than `max`.
    pub fn new(max: usize) -> Load {
        Load { max, bound: max.min(2), successes: 0, begun: BTreeMap::new(), pressed_at: None }
    }

    /// An attempt begins. Says whether there are too many of them now.
    pub fn begin(&mut self, attempt: u64) -> Result<(), String> {
        self.begun.insert(attempt, self.successes);
        let is_known = self.pressed_at < Some(Instant::now());
        match self.begun.len() <= self.bound || !is_known {
            true => Ok(()),
            false => Err(format!("{} attempts at once, not {}", self.begun.len(), self.bound)),
        }
    }

    /// An attempt ended and says nothing, or nothing for certain.
    pub fn end(&mut self, attempt: u64) {
        self.begun.remove(&attempt);
    }

    pub fn succeeded(&mut self, attempt: u64) {
        self.end(attempt);
        self.successes += 1;
        self.bound = self.max.min(self.bound + 1);
    }

    /// The attempt met backpressure: it, or another one since it began, has halved the bound.
    pub fn pressed(&mut self, attempt: u64) {
        let began = self.begun.remove(&attempt).unwrap_or(self.successes);
        let halved = (self.max / 2).max(self.max.min(2)) + (self.successes - began) as usize;
        self.bound = self.bound.min(halved);
        self.pressed_at = Some(Instant::now());
    }
}
