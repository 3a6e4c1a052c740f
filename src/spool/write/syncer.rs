//! The syncer: a thread that runs `interval`'s `fdatasync`, so that writing and answering go on
//! while a slow disk works.
//!
//! It takes one file at a time and says how the sync of it ended, once. A failed sync is told to
//! one caller only (Linux keeps one note for each open file), so whoever syncs the same file by
//! itself must have waited for this one's end before.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::spool::fs::File;
use crate::spool::state::SpoolState;

/// The committer's handle. The thread ends with it.
pub struct Syncer {
    desk: Arc<SyncSlot>,
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
    /// Starts the thread; it wakes `shared`'s committer when a sync has ended.
    pub fn start(shared: &Arc<SpoolState>) -> io::Result<Syncer> {
        let desk = Arc::new(SyncSlot::default());
        let (own, shared) = (Arc::clone(&desk), Arc::clone(shared));
        let thread = std::thread::Builder::new().name("spool-sync".to_owned());
        thread.spawn(move || own.work(&shared))?;
        Ok(Syncer { desk })
    }

    /// Begins the sync of a file, of which nothing else is asked before its end was taken.
    pub fn begin(&self, file: Arc<dyn File>) {
        *self.desk.lock() = State::Asked(file);
        self.desk.changed.notify_all();
    }

    /// How it ended; `None` while it goes on.
    pub fn try_end(&self) -> Option<io::Result<()>> {
        self.desk.lock().take_end()
    }

    /// Waits for its end. Only to be called between `begin` and an end that was taken.
    pub fn end(&self) -> io::Result<()> {
        let mut state = self.desk.lock();
        loop {
            if let Some(end) = state.take_end() {
                return end;
            }
            state = self.desk.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        *self.desk.lock() = State::Closed;
        self.desk.changed.notify_all();
    }
}

impl SyncSlot {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, shared: &SpoolState) {
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
                        shared.parker.unpark();
                    }
                }
                State::Closed => return,
                other => {
                    *state = other;
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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
