//! The spool's lasting faults, each with its path and the time for which it has lasted.
//!
//! A fault is in `/status` and in `pixelgate_faults` from the first failure to the first success.
//! Each of these two writes one line to the log, however often the work is tried in between.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::telemetry::faults::{FaultKind, Faults};

/// The lasting faults of one spool.
pub struct DiskFaults {
    faults: Faults,
    clock: Arc<dyn Clock>,
    lasting: Mutex<BTreeMap<(FaultKind, String), Lasting>>,
}

/// A loss that a start found in the cursor of a lane or in its counts by portal, and that cannot be
/// repaired.
pub struct Loss {
    pub what: FaultKind,
    pub subject: String,
    pub text: String,
    pub advice: &'static str,
}

struct Lasting {
    /// When this error was first seen, on the monotonic clock.
    since: Duration,
    error: (io::ErrorKind, Option<i32>),
}

impl DiskFaults {
    /// An empty list, which adds its faults to `faults`.
    pub fn new(faults: Faults, clock: Arc<dyn Clock>) -> DiskFaults {
        DiskFaults { faults, clock, lasting: Mutex::default() }
    }

    /// Records that the work `doing` on `subject` failed and will be tried again. Returns how long
    /// the work has failed with this error. A success or another error starts that time anew.
    pub fn raise(
        &self,
        what: FaultKind,
        subject: &str,
        doing: &str,
        error: &io::Error,
    ) -> Duration {
        let text = format!("spool: {doing} {subject} fails, trying again: {error}");
        let now = self.clock.monotonic();
        let key = (what, subject.to_owned());
        let mut lasting = self.lasting.lock();
        let is_new = !lasting.contains_key(&key);
        let error = (error.kind(), error.raw_os_error());
        let known = lasting.entry(key).or_insert(Lasting { since: now, error });
        if known.error != error {
            *known = Lasting { since: now, error };
        }
        let age = now.saturating_sub(known.since);
        drop(lasting);
        if is_new {
            ::log::error!("{text}");
        }
        self.faults.raise(what, subject, text, advice(what));
        age
    }

    /// Reports a loss in the log and as a fault, which lasts until the process ends.
    pub fn report(&self, loss: &Loss) {
        ::log::error!("spool: {}", loss.text);
        self.faults.raise(loss.what, &loss.subject, loss.text.clone(), loss.advice);
    }

    /// Records that work on `subject` succeeded.
    pub fn clear(&self, what: FaultKind, subject: &str) {
        if self.lasting.lock().remove(&(what, subject.to_owned())).is_some() {
            self.faults.clear(what, subject);
            ::log::info!("spool: {subject} works again");
        }
    }

    /// Raises or clears the fault of `subject`, as the result says.
    pub fn note<T>(&self, what: FaultKind, subject: &str, doing: &str, result: &io::Result<T>) {
        match result {
            Ok(_) => self.clear(what, subject),
            Err(error) => _ = self.raise(what, subject, doing, error),
        }
    }

    /// Clears the faults of this kind for whose subjects `is_there` returns false.
    pub fn retain(&self, what: FaultKind, is_there: impl Fn(&str) -> bool) {
        let mut gone = Vec::new();
        for (kind, subject) in self.lasting.lock().keys() {
            if *kind == what && !is_there(subject) {
                gone.push(subject.clone());
            }
        }
        gone.iter().for_each(|subject| self.clear(what, subject));
    }
}

/// The sentences that say what an operator can do.
fn advice(what: FaultKind) -> &'static str {
    match what {
        FaultKind::SpoolStart => {
            "Make room on the disk of spool.dir (bytes, inodes, quota), or make it writable. Until \
             then events are refused, and those of earlier processes are delivered where they can \
             be read. Events are accepted again without a restart."
        }
        FaultKind::SpoolFolder => {
            "Put the folder back or mount its disk again: then events are accepted again. A \
             restart makes a new lane in the folder that is there now."
        }
        FaultKind::SpoolLane => {
            "Look at the disk. The lane's events wait until it can be read. Sectors that stay \
             unreadable are skipped after spool.unreadable_seconds_max."
        }
        FaultKind::SpoolSegment => {
            "Put the file back, or look at the disk. Its events wait, and so do later events of \
            the same lane. To give up the events of a file that is gone, create an empty file \
            with its name."
        }
        FaultKind::SpoolCursor => {
            "Look at the disk. Until the cursor can be written, events would be delivered again \
             after a crash, and the lane's files are not removed."
        }
        FaultKind::PortalTotals => {
            "Look at the disk. No event is affected. Until the file can be written, the lane's \
            segments are not removed unless the disk is full, and the counts by portal since the \
            last write are only in memory."
        }
        _ => "Look at the disk and at the owner of the files. No event is affected.",
    }
}
