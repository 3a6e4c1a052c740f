//! The syncer: a thread that runs the `fdatasync` of `interval`, so that the committer can write
//! and answer meanwhile.
//!
//! It syncs one file at a time, and reports the result once. Linux reports a failed sync only to
//! the first caller after it, so no other thread may sync the same file before the result is taken.

use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::spool::fs::File;
use crate::spool::parker::Parker;

/// The handle of the committer to the thread. Dropping it ends the thread.
pub struct Syncer {
    slot: Arc<SyncSlot>,
}

#[derive(Default)]
struct SyncSlot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Asked(Arc<dyn File>),
    Busy,
    Done(io::Result<()>),
    Closed,
}

impl Syncer {
    /// Starts the thread, which wakes the committer with `parker` when a sync has ended.
    pub fn start(parker: Arc<Parker>) -> io::Result<Syncer> {
        let slot = Arc::new(SyncSlot::default());
        let own = Arc::clone(&slot);
        let thread = std::thread::Builder::new().name("spool-sync".to_owned());
        thread.spawn(move || own.work(&parker))?;
        Ok(Syncer { slot })
    }

    /// Begins the sync of a file. The next sync may begin when the result of this one was taken.
    pub fn begin(&self, file: Arc<dyn File>) {
        *self.slot.lock() = State::Asked(file);
        self.slot.changed.notify_all();
    }

    /// Takes the result. `None` while the sync goes on.
    pub fn try_end(&self) -> Option<io::Result<()>> {
        self.slot.lock().take_end()
    }

    /// Waits for the result and takes it. May be called only while a sync is under way.
    pub fn end(&self) -> io::Result<()> {
        let mut state = self.slot.lock();
        loop {
            if let Some(end) = state.take_end() {
                return end;
            }
            self.slot.changed.wait(&mut state);
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        *self.slot.lock() = State::Closed;
        self.slot.changed.notify_all();
    }
}

impl SyncSlot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn work(&self, parker: &Parker) {
        let mut state = self.lock();
        loop {
            match std::mem::replace(&mut *state, State::Busy) {
                State::Asked(file) => {
                    drop(state);
                    let end = file.sync_data();
                    state = self.lock();
                    if matches!(*state, State::Busy) {
                        *state = State::Done(end);
                        self.changed.notify_all();
                        parker.unpark();
                    }
                }
                State::Closed => return,
                other => {
                    *state = other;
                    self.changed.wait(&mut state);
                }
            }
        }
    }
}

impl State {
    fn take_end(&mut self) -> Option<io::Result<()>> {
        match std::mem::take(self) {
            State::Done(end) => Some(end),
            other => {
                *self = other;
                None
            }
        }
    }
}
