//! Events on their way to the dead letters: written one after another, beside the deliveries.
//!
//! One write at a time, on one blocking thread: a lock file that another process holds, or a disk
//! that hangs, delays the letters that follow and nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dead_letters::{DeadLetters, Letter, Reason};
use super::in_flight_batch::InFlightBatch;
use super::retries::Backoff;
use crate::upstream::Failure;

/// A write that takes longer than this counts as failing.
const SLOW: Duration = Duration::from_secs(5);

/// Writes events to the dead letters of one upstream, one batch after another.
pub struct LetterQueue {
    file: DeadLetters,
    waiting: VecDeque<(InFlightBatch, Arc<[Letter]>)>,
    bytes: usize,
    writing: JoinSet<Result<(), String>>,
    began: Instant,
    failures: u32,
    /// The first batch in the queue is written again at this moment. `None`: the last write did
    /// not fail.
    retry_at: Option<Instant>,
}

/// What became of a write.
pub enum Written {
    /// The events of this batch are dead letters.
    Done(InFlightBatch),
    /// The write failed and will be repeated.
    Failed(String),
}

impl LetterQueue {
    pub fn new(file: DeadLetters) -> LetterQueue {
        LetterQueue {
            file,
            waiting: VecDeque::new(),
            bytes: 0,
            writing: JoinSet::new(),
            began: Instant::now(),
            failures: 0,
            retry_at: None,
        }
    }

    /// Adds the events of a batch, which have ended at `now_ms` (since 1970) for this reason.
    pub fn push(&mut self, batch: InFlightBatch, now_ms: u64, reason: Reason, failure: &Failure) {
        let letter = |r: &Bytes| Letter::new(self.file.upstream(), now_ms, reason, failure, r);
        let letters: Arc<[Letter]> = batch.batch.records().iter().map(letter).collect();
        self.bytes += batch.bytes();
        self.waiting.push_back((batch, letters));
        self.write(Instant::now());
    }

    /// Whether letters wait or are being written.
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Bytes of the records that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When the write that failed last is due again. `None`: the last write did not fail.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether the last write failed, or the one under way takes long.
    pub fn is_failing(&self, now: Instant) -> bool {
        self.failures > 0 || self.slow_write(now).is_some()
    }

    /// How long the write under way has taken, if that is more than [`SLOW`].
    pub fn slow_write(&self, now: Instant) -> Option<Duration> {
        let taken = now.saturating_duration_since(self.began);
        (!self.writing.is_empty() && taken > SLOW).then_some(taken)
    }

    /// Begins the next write if it is due and none is under way.
    pub fn write(&mut self, now: Instant) {
        let Some((_, letters)) = self.waiting.front() else { return };
        if !self.writing.is_empty() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let (file, letters) = (self.file.clone(), Arc::clone(letters));
        self.retry_at = None;
        self.began = now;
        self.writing.spawn_blocking(move || file.append(&letters).map_err(|e| e.to_string()));
    }

    /// Waits for the end of the write under way. `None` at once if there is none.
    pub async fn written(&mut self, backoff: &Backoff) -> Option<Written> {
        // A write that panicked is repeated like one that failed.
        let result = self.writing.join_next().await?.unwrap_or_else(|e| Err(e.to_string()));
        if let Err(error) = result {
            self.failures = self.failures.saturating_add(1);
            self.retry_at = Some(Instant::now() + backoff.wait(self.failures, None));
            return Some(Written::Failed(error));
        }
        self.failures = 0;
        let (batch, _) = self.waiting.pop_front()?;
        self.bytes -= batch.bytes();
        self.write(Instant::now());
        Some(Written::Done(batch))
    }
}
