//! Stages records, and answers the requests that wait for them.
//!
//! Each worker thread stages into a [`Shard`] of its own: a buffer behind a lock that only the
//! committer also takes. The records that a shard stages between two visits of the committer are
//! one [`Group`], which is answered as a whole. The committer wakes one waiter of a group; that
//! waiter, on its worker thread, wakes the others. So a thousand waiting requests cost the
//! committer one wake-up, and none of them needs a thread.
//!
//! This file does no I/O and takes its primitives from `super::sync`: `tests/unit/spool_loom.rs`
//! compiles it with loom's primitives and tries every interleaving.

use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::sync::{Arc, AtomicU8, Mutex, MutexGuard, Ordering, PoisonError};

const WAITING: u8 = 0;
const COMMITTED: u8 = 1;
const REFUSED: u8 = 2;
/// Set in addition to `COMMITTED` or `REFUSED` when every waiter was woken.
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

/// The records that one shard staged together: their outcome and the tasks that wait for it.
pub struct Group {
    outcome: AtomicU8,
    waiters: Mutex<Vec<Option<Waker>>>,
}

impl Group {
    /// A group without an outcome yet.
    pub fn new() -> Group {
        Group { outcome: AtomicU8::new(WAITING), waiters: Mutex::new(Vec::new()) }
    }

    /// Sets the outcome and wakes one waiter, which wakes the others. Called once.
    pub fn settle(&self, outcome: Result<(), Overloaded>) {
        let outcome = if outcome.is_ok() { COMMITTED } else { REFUSED };
        let first = {
            // Set under the lock: a waiter that saw WAITING under the lock is in the list.
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
            // All waiters but the first return here.
            return;
        }
        let rest = {
            let mut waiters = lock(&self.waiters);
            // A waiter that takes this lock later sees that the group is settled.
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
/// Dropping it does not withdraw the event, which is still written.
pub struct Commit {
    // `None`: the group is settled, or there was no need to wait.
    group: Option<Arc<Group>>,
    /// The place among the group's waiters, counted from 1.
    place: Option<NonZeroUsize>,
}

impl Commit {
    /// Waits for a group.
    pub fn waiting(group: Arc<Group>) -> Commit {
        Commit { group: Some(group), place: None }
    }

    /// A commit that is done already.
    pub fn ready() -> Commit {
        Commit { group: None, place: None }
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
                match (group.outcome(), this.place) {
                    (Some(outcome), _) => outcome,
                    (None, Some(place)) => {
                        waiters[place.get() - 1] = Some(context.waker().clone());
                        return Poll::Pending;
                    }
                    (None, None) => {
                        waiters.push(Some(context.waker().clone()));
                        this.place = NonZeroUsize::new(waiters.len());
                        return Poll::Pending;
                    }
                }
            }
        };
        group.pass_on();
        // If it is polled again after its end, it reports success; a refusal was reported already.
        this.group = None;
        this.place = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Commit {
    fn drop(&mut self) {
        let (Some(group), Some(place)) = (&self.group, self.place) else { return };
        let settled = {
            let mut waiters = lock(&group.waiters);
            let settled = group.outcome().is_some();
            if !settled {
                // Its task will not poll this again, so another waiter must be woken instead.
                waiters[place.get() - 1] = None;
            }
            settled
        };
        if settled {
            // This waiter may be the one that `settle` woke, so it must wake the others.
            group.pass_on();
        }
    }
}

/// The records that the committer takes from a shard.
pub struct Taken {
    /// The consecutive staged records.
    pub bytes: Vec<u8>,
    /// The number of records.
    pub events: u64,
    /// When the first record was staged, by the monotonic clock.
    pub first_at: Duration,
    /// The group whose tasks wait for these records.
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

    /// Stages a record if `admit` returns true. `now` is called for the first record of a group.
    ///
    /// `admit` runs under the shard's lock. So once `admit` returns false and the shard was emptied
    /// after that, no further record is staged.
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

    /// The time at which the first record in this shard was staged.
    pub fn first_at(&self) -> Option<Duration> {
        let staging = lock(&self.staging);
        (staging.events > 0).then_some(staging.first_at)
    }

    /// Takes the staged records, and leaves `spare`, an empty buffer, and a new group. `None` if no
    /// record is staged.
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

// A panic under these locks leaves no half-made change, so a poisoned lock is used as it is.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
