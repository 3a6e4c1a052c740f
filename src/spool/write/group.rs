//! Staging and publishing: how an append meets the committer, and how its answer comes back.
//!
//! Each worker thread stages into a [`Shard`] of its own: a buffer behind a lock that only the
//! committer contends for. All that a shard stages between two visits of the committer is one
//! [`Group`], settled as one. The committer wakes a single waiter of a group; that one, running on
//! the worker, wakes the others there. So a thousand waiting requests cost the committer one
//! wake-up, and none of them costs a thread.
//!
//! This file does no I/O and takes its primitives from `super::sync`: `tests/spool_loom.rs`
//! compiles it against loom's and tries every interleaving.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::sync::{Arc, AtomicU8, Mutex, MutexGuard, Ordering, PoisonError};

const WAITING: u8 = 0;
const COMMITTED: u8 = 1;
const REFUSED: u8 = 2;
/// Beside one of the last two: no task is left to be woken.
const PASSED_ON: u8 = 4;

/// The spool did not take the event: it is full, failing or closed (SPEC 4, `overloaded`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overloaded;

impl std::fmt::Display for Overloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the spool is full, failing or closed")
    }
}

impl std::error::Error for Overloaded {}

/// What became of the records that one shard staged together.
pub struct Group {
    outcome: AtomicU8,
    waiters: Mutex<Vec<Option<Waker>>>,
}

impl Group {
    /// A group that waits.
    pub fn new() -> Group {
        Group { outcome: AtomicU8::new(WAITING), waiters: Mutex::new(Vec::new()) }
    }

    /// Says how it ended and wakes one waiter, which wakes the others.
    pub fn settle(&self, outcome: Result<(), Overloaded>) {
        let outcome = if outcome.is_ok() { COMMITTED } else { REFUSED };
        let first = {
            // Under the lock, so that a waiter that saw WAITING under it is on the list.
            let mut waiters = lock(&self.waiters);
            self.outcome.store(outcome, Ordering::Release);
            waiters.iter_mut().find_map(Option::take)
        };
        if let Some(waker) = first {
            waker.wake();
        }
    }

    fn outcome(&self) -> Option<Result<(), Overloaded>> {
        match self.outcome.load(Ordering::Acquire) & !PASSED_ON {
            WAITING => None,
            COMMITTED => Some(Ok(())),
            _ => Some(Err(Overloaded)),
        }
    }

    /// Wakes the tasks that still wait for a settled group.
    fn pass_on(&self) {
        if self.outcome.load(Ordering::Acquire) & PASSED_ON != 0 {
            // All but the first of a thousand come by here.
            return;
        }
        let rest = {
            let mut waiters = lock(&self.waiters);
            // Final: who looks from now on, under this lock, sees that the group is settled.
            self.outcome.fetch_or(PASSED_ON, Ordering::Release);
            std::mem::take(&mut *waiters)
        };
        for waker in rest.into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Default for Group {
    fn default() -> Self {
        Group::new()
    }
}

/// Waits until an appended event is as durable as `spool.durability` says.
///
/// Dropping it takes nothing back: the event is still written.
pub struct Commit {
    // None: settled, or there was nothing to wait for.
    group: Option<Arc<Group>>,
    slot: Option<usize>,
}

impl Commit {
    /// Waits for a group.
    pub fn waiting(group: Arc<Group>) -> Commit {
        Commit { group: Some(group), slot: None }
    }

    /// Done already.
    pub fn ready() -> Commit {
        Commit { group: None, slot: None }
    }
}

impl Future for Commit {
    type Output = Result<(), Overloaded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(group) = &this.group else { return Poll::Ready(Ok(())) };
        let outcome = match group.outcome() {
            Some(outcome) => outcome,
            None => {
                let mut waiters = lock(&group.waiters);
                match (group.outcome(), this.slot) {
                    (Some(outcome), _) => outcome,
                    (None, Some(slot)) => {
                        waiters[slot] = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                    (None, None) => {
                        this.slot = Some(waiters.len());
                        waiters.push(Some(context.waker().clone()));
                        return Poll::Pending;
                    }
                }
            }
        };
        group.pass_on();
        // Polled again after it ended, it repeats the good end; a bad one was returned already.
        this.group = None;
        this.slot = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        let (Some(group), Some(slot)) = (&self.group, self.slot) else { return };
        let settled = {
            let mut waiters = lock(&group.waiters);
            let settled = group.outcome().is_some();
            if !settled {
                // Its task may live on and never look here again: it must not be the one woken.
                waiters[slot] = None;
            }
            settled
        };
        if settled {
            // It may be the one that was woken for all.
            group.pass_on();
        }
    }
}

/// What the committer takes from a shard.
pub struct Taken {
    /// Staged records, one behind the other.
    pub bytes: Vec<u8>,
    /// How many.
    pub events: u64,
    /// When the first was staged.
    pub first_at: Duration,
    /// Who waits for them.
    pub group: Arc<Group>,
}

struct Staging {
    bytes: Vec<u8>,
    events: u64,
    first_at: Duration,
    group: Arc<Group>,
}

/// One worker's staging buffer.
pub struct Shard {
    staging: Mutex<Staging>,
}

impl Shard {
    /// An empty shard.
    pub fn new() -> Shard {
        Shard {
            staging: Mutex::new(Staging {
                bytes: Vec::new(),
                events: 0,
                first_at: Duration::ZERO,
                group: Arc::new(Group::new()),
            }),
        }
    }

    /// Stages a record, if `admit` agrees. `now` is asked for a group's first.
    ///
    /// `admit` runs under the shard's lock: after the committer has closed the gate that it looks
    /// at and has then emptied the shard, nothing more comes.
    pub fn append(
        &self,
        now: impl FnOnce() -> Duration,
        header: &[u8],
        payload: &[u8],
        admit: impl FnOnce() -> bool,
    ) -> Result<Arc<Group>, Overloaded> {
        let mut staging = lock(&self.staging);
        if !admit() {
            return Err(Overloaded);
        }
        if staging.events == 0 {
            staging.first_at = now();
        }
        staging.bytes.extend_from_slice(header);
        staging.bytes.extend_from_slice(payload);
        staging.events += 1;
        Ok(Arc::clone(&staging.group))
    }

    /// When the first record that waits here was staged.
    pub fn first_at(&self) -> Option<Duration> {
        let staging = lock(&self.staging);
        (staging.events > 0).then_some(staging.first_at)
    }

    /// Takes what was staged and leaves `spare`, an empty buffer, and a new group.
    pub fn take(&self, spare: &mut Option<Vec<u8>>) -> Option<Taken> {
        let mut staging = lock(&self.staging);
        if staging.events == 0 {
            return None;
        }
        let bytes = std::mem::replace(&mut staging.bytes, spare.take().unwrap_or_default());
        let events = std::mem::take(&mut staging.events);
        let first_at = staging.first_at;
        let group = std::mem::replace(&mut staging.group, Arc::new(Group::new()));
        Some(Taken { bytes, events, first_at, group })
    }
}

impl Default for Shard {
    fn default() -> Self {
        Shard::new()
    }
}

// A panic below these locks leaves nothing half done that is not looked after, so go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
