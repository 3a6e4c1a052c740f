//! Lets the committer sleep, and lets other threads wake it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::Thread;
use std::time::Duration;

/// Puts the committer to sleep and wakes it, with a system call only when it sleeps.
#[derive(Default)]
pub struct Parker {
    thread: OnceLock<Thread>,
    idle: AtomicBool,
}

impl Parker {
    /// Sets the thread to wake, and wakes it once for records that were staged before.
    pub fn set(&self, thread: Thread) {
        _ = self.thread.set(thread);
        self.unpark();
    }

    /// Wakes the thread; does nothing before [`Parker::set`].
    pub fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Wakes the committer after a record was staged, if it is idle or the record is `urgent`.
    pub fn wake(&self, urgent: bool) {
        // The shard's lock orders the two threads: a committer that found the shard empty had set
        // `idle` before.
        if urgent || (self.idle.load(SeqCst) && self.idle.swap(false, SeqCst)) {
            self.unpark();
        }
    }

    /// Sleeps until another thread wakes this one, or until `timeout` is over. Returns at once if
    /// there is `work`.
    pub fn park(&self, timeout: Option<Duration>, work: impl Fn() -> bool) {
        if work() {
            // The thread is not marked as idle, so that appends make no system call to wake it.
            return;
        }
        self.idle.store(true, SeqCst);
        if !work() {
            match timeout {
                Some(timeout) => std::thread::park_timeout(timeout),
                None => std::thread::park(),
            }
        }
        self.idle.store(false, SeqCst);
    }
}
