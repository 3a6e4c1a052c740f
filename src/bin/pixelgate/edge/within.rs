//! Work on a disk that may not answer, done by another thread, so that it cannot hang a start.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// The longest wait of a start for work on a disk.
pub const START_LIMIT: Duration = Duration::from_secs(5);

/// Starts `work` on another thread, and waits for at most `limit` for the value that it sends.
/// `None`: `work` has not sent a value in time, and goes on; or the thread could not be started.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(SyncSender<T>) + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = sync_channel(1);
    let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || work(sender));
    if let Err(e) = thread {
        log::error!("a thread for work on a disk cannot be started: {e}");
    }
    receiver.recv_timeout(limit).ok()
}
