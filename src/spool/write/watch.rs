//! The watch: a thread that refuses events while the disk is stalled.
//!
//! It makes no call to the disk, so it goes on if every other thread of the spool hangs in such a
//! call.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::group::Overloaded;
use crate::spool::config::Durability;
use crate::spool::state::SpoolState;

/// The longest sleep while no commit is overdue.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// The time between two checks for the end of a stall.
const STALL_POLL: Duration = Duration::from_millis(50);

/// The state of the watching thread.
pub struct Watch {
    state: Arc<SpoolState>,
}

/// Ends the watch.
#[derive(Default)]
pub struct StopWatch {
    stop: Mutex<bool>,
    stopped: Condvar,
}

impl StopWatch {
    /// Ends the watch, without waiting for its thread.
    pub fn stop(&self) {
        *self.stop.lock() = true;
        self.stopped.notify_all();
    }

    /// Waits for `time`, or until the stop. Returns whether the watch must stop.
    fn wait(&self, time: Duration) -> bool {
        let mut stop = self.stop.lock();
        self.stopped.wait_while_for(&mut stop, |stop| !*stop, time);
        *stop
    }
}

impl Watch {
    /// The watch of this spool.
    pub fn new(state: Arc<SpoolState>) -> Watch {
        Watch { state }
    }

    /// Watches until the stop.
    pub fn run(self, stop: &StopWatch) {
        let mut sleep = Duration::ZERO;
        while !stop.wait(sleep) {
            let limit = self.state.config().commit_limit();
            let now = self.state.clock.monotonic();
            let busy = self.state.waiting.busy_since().map(|since| now.saturating_sub(since));
            sleep = match busy {
                Some(busy) if busy >= limit => {
                    self.state.set_stalled(true);
                    self.refuse(now.saturating_sub(limit));
                    STALL_POLL
                }
                _ => {
                    self.state.set_stalled(false);
                    (limit - busy.unwrap_or_default()).min(limit / 2).min(SLEEP_MAX)
                }
            };
        }
    }

    /// Refuses the events that wait. Further events are refused at once, so none are staged.
    fn refuse(&self, latest: Duration) {
        self.state.waiting.expire(latest);
        if self.state.durability == Durability::Memory {
            // Each event was answered when it was staged.
            return;
        }
        for shard in &self.state.shards {
            if let Some(taken) = shard.take(&mut None) {
                taken.group.settle(Err(Overloaded));
                self.state.bounds.settle(taken.bytes.len() as u64);
            }
        }
    }
}
