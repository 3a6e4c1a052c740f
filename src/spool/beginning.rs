//! Does the first work of a start on the disk on another thread. If the disk hangs, only that
//! thread hangs, and the start goes on without it (SPEC 6).

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::state::SpoolState;

/// The longest wait of a start for the lock of the folder, which a process holds while it creates
/// or adopts lanes.
const SPOOL_LOCK_WAIT: Duration = Duration::from_secs(10);
/// The time between two attempts to take this lock.
const SPOOL_LOCK_POLL: Duration = Duration::from_millis(5);

/// The thread that adopts the lanes of earlier processes and creates the lane of this one.
pub struct Beginning {
    thread: JoinHandle<()>,
    /// The result of each attempt. After `WouldBlock` another attempt follows.
    results: Receiver<io::Result<()>>,
}

impl Beginning {
    /// Starts the thread.
    pub fn start(state: &Arc<SpoolState>) -> io::Result<Beginning> {
        let state = Arc::clone(state);
        let (sender, results) = mpsc::sync_channel(1);
        let begin = move || {
            let until = Instant::now() + SPOOL_LOCK_WAIT;
            loop {
                let result = state.begin();
                let is_last = !is_locked(&result) || Instant::now() >= until;
                if is_last {
                    state.look_at_disk();
                }
                // Fails if the start has gone on without this thread.
                _ = sender.send(result);
                if is_last {
                    return;
                }
                std::thread::sleep(SPOOL_LOCK_POLL);
            }
        };
        let thread = std::thread::Builder::new().name("spool-begin".to_owned()).spawn(begin)?;
        Ok(Beginning { thread, results })
    }

    /// Waits for the last attempt, for `limit` at most for each attempt, and returns its result.
    ///
    /// # Errors
    ///
    /// The error of the file system, or `WouldBlock` if another process held the lock of the folder
    /// for [`SPOOL_LOCK_WAIT`], or `TimedOut` if the disk does not answer.
    pub fn wait(&self, limit: Duration) -> io::Result<()> {
        let mut last = Err(io::Error::other("the thread that opens the spool has panicked"));
        loop {
            match self.results.recv_timeout(limit) {
                Ok(result) if is_locked(&result) => last = result,
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return last,
                Err(RecvTimeoutError::Timeout) => {
                    let what = "the disk has not answered for spool.commit_seconds_max";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
            }
        }
    }

    /// Waits until the thread has ended.
    pub fn join(self) {
        // Dropped first, so that the thread does not wait for room in the channel.
        drop(self.results);
        // A panic was reported by the thread itself.
        _ = self.thread.join();
    }
}

fn is_locked(result: &io::Result<()>) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
