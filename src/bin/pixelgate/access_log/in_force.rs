//! The access log in force, which a reload can replace by another.
//!
//! The line of a request belongs into the access log that was in force when the request began. So
//! the writer of a replaced log ends only after the last of these requests, and a stop of the edge
//! waits for it, too.

use super::writer::{AccessLogFile, Writing};
use parking_lot::Mutex;
use pixelgate::PixelGate;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The access log in force, and those it has replaced. All clones are handles to the same logs.
#[derive(Clone)]
pub struct AccessLogs(Arc<Inner>);

struct Inner {
    gate: PixelGate,
    files: Mutex<Files>,
}

#[derive(Default)]
struct Files {
    current: Option<Writing>,
    /// Replaced logs whose last lines may not be written yet.
    replaced: Vec<Writing>,
}

impl AccessLogs {
    /// Returns the access logs of the requests of `gate`; none is in force yet.
    pub fn new(gate: PixelGate) -> Self {
        Self(Arc::new(Inner { gate, files: Mutex::default() }))
    }

    /// Puts `new` in force for requests that begin from now on. `None`: no access log is written.
    pub fn put(&self, new: Option<AccessLogFile>) {
        let (log, writing) = new.map(AccessLogFile::into_parts).unzip();
        let mut files = self.0.files.lock();
        self.0.gate.set_access_log(log);
        let old = std::mem::replace(&mut files.current, writing);
        files.replaced.extend(old);
        files.replaced.retain(|writing| !writing.has_ended());
    }

    /// Asks the writer to open the file again, after the lines of all ended requests are in the
    /// old one. Returns at once.
    pub fn reopen(&self) {
        self.0.files.lock().current.iter().for_each(Writing::reopen);
    }

    /// Writes the waiting lines of all logs, and ends their writers. Waits for `limit` at most.
    pub fn close(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let Files { current, replaced } = std::mem::take(&mut *self.0.files.lock());
        for writing in replaced.into_iter().chain(current) {
            writing.close(until.saturating_duration_since(Instant::now()));
        }
    }
}
