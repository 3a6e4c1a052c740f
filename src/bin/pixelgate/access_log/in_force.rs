//! The access log in force, which a reload replaces.
//!
//! The writer of a replaced log ends when the last request that began under it has ended, because
//! its line belongs into the old file. A stop waits for such writers, too.

use super::writer::{AccessLogFile, Writing};
use parking_lot::Mutex;
use pixelgate::PixelGate;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// See the module. A clone is another handle to the same log.
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
    /// No access log yet, for the requests of this gate.
    pub fn new(gate: PixelGate) -> Self {
        Self(Arc::new(Inner { gate, files: Mutex::default() }))
    }

    /// Puts another log in force for requests that begin from now on. `None`: there is none.
    pub fn put(&self, new: Option<AccessLogFile>) {
        let (log, writing) = new.map(AccessLogFile::into_parts).unzip();
        let mut files = self.0.files.lock();
        self.0.gate.set_access_log(log);
        let old = std::mem::replace(&mut files.current, writing);
        files.replaced.extend(old);
        files.replaced.retain(|writing| !writing.has_ended());
    }

    /// Opens the file again, after the lines of all requests that have ended are in the old one.
    /// Does not wait for it.
    pub fn reopen(&self) {
        self.0.files.lock().current.iter().for_each(Writing::reopen);
    }

    /// Writes what waits, at most within `limit`.
    pub fn close(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let Files { current, replaced } = std::mem::take(&mut *self.0.files.lock());
        for writing in replaced.into_iter().chain(current) {
            writing.close(until.saturating_duration_since(Instant::now()));
        }
    }
}
