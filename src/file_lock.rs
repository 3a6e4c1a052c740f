//! Waits for the lock of a file (`flock`), for at most 5 seconds: a process that was stopped, or
//! that waits for a disk that hangs, may hold the lock for any time.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

/// Longest wait for a lock. A process that is not stopped holds the lock for milliseconds, or for
/// a few seconds while it rewrites a large file.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Takes the exclusive lock of a file. Blocks for up to 5 seconds.
///
/// # Errors
///
/// `TimedOut` if another process holds the lock for longer, and the errors of the file system.
pub fn lock(file: &File) -> io::Result<()> {
    wait_for(|| file.try_lock())
}

/// Takes the shared lock of a file, which other readers may hold at the same time. Blocks for up to
/// 5 seconds.
///
/// # Errors
///
/// The errors of [`lock`].
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
                let seconds = LOCK_WAIT.as_secs();
                let what = format!("another process has held the lock for {seconds} seconds");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}
