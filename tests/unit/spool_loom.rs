//! Staging and publishing under every interleaving: `src/spool/write/group.rs`,
//! compiled against loom's primitives.
//!
//! Runs with the ordinary tests: `cargo test --test unit spool_loom`. The file under test is the
//! one that the spool uses; it takes its primitives from its parent's `sync`.

#![allow(dead_code, reason = "a model uses a part of the file under test")]

mod sync {
    pub use loom::sync::atomic::{AtomicU8, Ordering};
    pub use loom::sync::{Arc, Mutex, MutexGuard};
    pub use std::sync::PoisonError;
}

#[path = "../../src/spool/write/group.rs"]
mod group;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use group::{Commit, Group, Overloaded, Shard};
use loom::future::block_on;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // All interleavings with up to two preemptions: what is known to find nearly all races.
    builder.preemption_bound = Some(2);
    builder.check(check);
}

fn append(shard: &Shard, gate: &AtomicBool) -> Result<Arc<Group>, Overloaded> {
    shard.append(|| Duration::ZERO, b"header", b"payload", || gate.load(Ordering::Relaxed))
}

/// Acts as the committer: takes what is staged and says that it is safe.
fn visit(shard: &Shard) -> u64 {
    shard.take(&mut None).map_or(0, |taken| {
        assert_eq!(taken.bytes.len() as u64, taken.events * 13);
        taken.group.settle(Ok(()));
        taken.events
    })
}

fn noop() -> Waker {
    Waker::noop().clone()
}

#[test]
fn every_waiter_of_a_group_is_woken() {
    model(|| {
        let group = Arc::new(Group::new());
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let group = Arc::clone(&group);
                thread::spawn(move || block_on(Commit::waiting(group)))
            })
            .collect();
        group.settle(Ok(()));
        for waiter in waiters {
            assert_eq!(waiter.join().expect("ends"), Ok(()));
        }
    });
}

#[test]
fn a_waiter_that_gives_up_does_not_keep_the_wake_up_to_itself() {
    model(|| {
        let group = Arc::new(Group::new());
        let stays = {
            let group = Arc::clone(&group);
            thread::spawn(move || block_on(Commit::waiting(group)))
        };
        let leaves = {
            let group = Arc::clone(&group);
            thread::spawn(move || {
                let mut commit = Commit::waiting(group);
                // The waiting request is dropped while its task goes on, as with `select!`.
                _ = Pin::new(&mut commit).poll(&mut Context::from_waker(&noop()));
                drop(commit);
            })
        };
        group.settle(Err(Overloaded));
        assert_eq!(stays.join().expect("ends"), Err(Overloaded));
        leaves.join().expect("ends");
    });
}

#[test]
fn what_is_staged_is_taken_once_and_its_waiter_hears_of_it() {
    model(|| {
        let shard = Arc::new(Shard::new());
        let open = Arc::new(AtomicBool::new(true));
        let workers: Vec<_> = (0..2)
            .map(|_| {
                let (shard, open) = (Arc::clone(&shard), Arc::clone(&open));
                thread::spawn(move || {
                    let group = append(&shard, &open)?;
                    block_on(Commit::waiting(group))
                })
            })
            .collect();
        let mut events = 0;
        while events < 2 {
            events += visit(&shard);
            thread::yield_now();
        }
        assert_eq!(visit(&shard), 0);
        for worker in workers {
            assert_eq!(worker.join().expect("ends"), Ok(()));
        }
    });
}

#[test]
fn nothing_is_staged_behind_the_last_visit() {
    model(|| {
        let shard = Arc::new(Shard::new());
        let open = Arc::new(AtomicBool::new(true));
        let worker = {
            let (shard, open) = (Arc::clone(&shard), Arc::clone(&open));
            thread::spawn(move || match append(&shard, &open) {
                Ok(group) => block_on(Commit::waiting(group)).is_ok(),
                Err(Overloaded) => false,
            })
        };
        // Closing ends admission first, and then takes what is staged a last time.
        open.store(false, Ordering::Relaxed);
        let taken = shard.take(&mut None);
        let events = taken.as_ref().map_or(0, |taken| taken.events);
        if let Some(taken) = taken {
            taken.group.settle(Ok(()));
        }
        assert_eq!(worker.join().expect("ends"), events == 1);
        assert!(shard.take(&mut None).is_none());
    });
}

#[test]
fn a_sleeping_committer_sees_what_is_staged() {
    model(|| {
        let shard = Arc::new(Shard::new());
        let open = Arc::new(AtomicBool::new(true));
        let idle = Arc::new(AtomicBool::new(false));
        let worker = {
            let (shard, open, idle) = (Arc::clone(&shard), Arc::clone(&open), Arc::clone(&idle));
            thread::spawn(move || {
                append(&shard, &open).expect("open");
                // As `Parker::wake`: true means that it unparks the committer.
                idle.load(Ordering::SeqCst) && idle.swap(false, Ordering::SeqCst)
            })
        };
        // As `Parker::park`: it announces itself, looks once more, and sleeps.
        idle.store(true, Ordering::SeqCst);
        let sleeps = shard.first_at().is_none();
        let woken = worker.join().expect("ends");
        assert!(!sleeps || woken, "asleep with an event that waits");
    });
}

#[test]
fn a_settled_group_answers_at_once() {
    model(|| {
        let group = Arc::new(Group::new());
        group.settle(Ok(()));
        let mut commit = Commit::waiting(group);
        let poll = Pin::new(&mut commit).poll(&mut Context::from_waker(&noop()));
        assert_eq!(poll, Poll::Ready(Ok(())));
    });
}
