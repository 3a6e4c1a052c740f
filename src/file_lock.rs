//! Waits for the lock of a file (`flock`), and gives up after some seconds: a process that was
//! stopped, or a disk that hangs, may hold it for any time.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

/// Longest wait for a lock. A process that works holds it for milliseconds, or for some seconds
/// while it rewrites a large file.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the file's lock for this process alone. Blocks for up to five seconds.
///
/// # Errors
///
/// `TimedOut` where another process holds it for longer, and the file system's errors.
pub fn lock(file: &File) -> io::Result<()> {
    wait_for(|| file.try_lock())
}

/// Takes the file's lock together with others that only read.
///
/// # Errors
///
/// Those of [`lock`].
pub fn lock_shared(file: &File) -> io::Result<()> {
    wait_for(|| file.try_lock_shared())
}

fn wait_for(try_lock: impl Fn() -> Result<(), TryLockError>) -> io::Result<()> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                let what = "another process holds the lock";
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}
