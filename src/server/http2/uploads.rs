//! Ends an upload as soon as its client resets the stream.
//!
//! Pingora does not look at a client's stream while it waits for an origin to take more of the
//! body. An upload that its client has cancelled would thus keep its part of the connection's
//! window, and its connection to the origin, until the origin's timeout. The frame counter sees
//! each RST_STREAM at once.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::Notify;

/// The streams of one connection whose request body had not ended when they were opened: at most
/// `h2_streams_max`.
#[derive(Debug, Default)]
pub struct Uploads(Mutex<HashMap<u32, Arc<Upload>>>);

/// One stream with an upload.
#[derive(Debug, Default)]
pub struct Upload {
    reset: Notify,
    is_proxied: AtomicBool,
}

/// Lists a stream until dropped.
pub struct ListedUpload {
    uploads: Arc<Uploads>,
    stream: u32,
    pub upload: Arc<Upload>,
}

impl Uploads {
    /// Lists a stream. Call this before later frames are read.
    pub fn list(self: &Arc<Self>, stream: u32) -> ListedUpload {
        let upload = Arc::<Upload>::default();
        self.0.lock().insert(stream, upload.clone());
        ListedUpload { uploads: self.clone(), stream, upload }
    }

    /// Notes that the client has reset a stream.
    pub fn reset(&self, stream: u32) {
        if let Some(upload) = self.0.lock().get(&stream) {
            upload.reset.notify_one();
        }
    }

    /// Notes that the connection has ended, and all of its streams with it.
    pub fn reset_all(&self) {
        self.0.lock().values().for_each(|upload| upload.reset.notify_one());
    }
}

impl Upload {
    /// Notes that the body is being passed on to an origin.
    pub fn proxied(&self) {
        self.is_proxied.store(true, Relaxed);
    }

    /// Waits until the client resets the stream while its body is passed on. A reset before that,
    /// such as while an event is stored, is noticed at the next read of the stream.
    pub async fn cancelled(&self) {
        loop {
            self.reset.notified().await;
            if self.is_proxied.load(Relaxed) {
                return;
            }
        }
    }
}

impl Drop for ListedUpload {
    fn drop(&mut self) {
        self.uploads.0.lock().remove(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_reset_cancels_the_upload_that_is_passed_on() {
        let uploads = Arc::<Uploads>::default();
        let [first, second] = [1, 3].map(|stream| uploads.list(stream));
        let cx = &mut Context::from_waker(Waker::noop());
        let mut cancelled = pin!(first.upload.cancelled());
        uploads.reset(1);
        assert_eq!(cancelled.as_mut().poll(cx), Poll::Pending, "not passed on yet");
        first.upload.proxied();
        uploads.reset(3);
        assert_eq!(cancelled.as_mut().poll(cx), Poll::Pending, "another stream");
        uploads.reset(1);
        assert_eq!(cancelled.as_mut().poll(cx), Poll::Ready(()));
        second.upload.proxied();
        uploads.reset_all();
        assert_eq!(pin!(second.upload.cancelled()).poll(cx), Poll::Ready(()));
        drop(second);
        assert_eq!(uploads.0.lock().len(), 1);
    }
}
