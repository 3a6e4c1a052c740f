//! Work on a disk that may not answer, done by another thread, so that it cannot hang a start.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// The longest wait of a start for work on a disk.
pub const START_LIMIT: Duration = Duration::from_secs(5);

/// Starts `work` on another thread, and waits for at most `limit` until it passes a value to the
/// function that it is given. `None`: it has not, and goes on.
pub fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(Box<dyn FnOnce(T) + Send>) + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = sync_channel(1);
    let done = Box::new(move |value| {
        // An error means that it took too long, and that the caller has gone on.
        let _ = sender.send(value);
    });
    let thread = std::thread::Builder::new().name("disk".to_owned()).spawn(move || work(done));
    if let Err(e) = thread {
        log::error!("a thread for work on a disk cannot be started: {e}");
    }
    receiver.recv_timeout(limit).ok()
}
