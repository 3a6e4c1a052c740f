//! Records that a newer version of this program wrote, as after a downgrade.
//!
//! They are not damaged: they stay pending in the spool, unacknowledged, until a version that knows
//! them delivers them. They count for the lag: the fields that every version has at the same place
//! say when they were received.

use std::sync::Arc;

use super::tracker::Tracker;
use crate::event::{is_newer_record, received_ms};
use crate::plural::counted;
use crate::spool::Entry;
use crate::telemetry::faults::{FaultKind, Faults};

/// Counts the records of newer versions that wait for one upstream, and names them as a fault.
pub struct NewerRecords {
    upstream: String,
    faults: Faults,
    tracker: Arc<Tracker>,
    events: u64,
}

impl NewerRecords {
    /// No records so far.
    pub fn new(upstream: &str, faults: &Faults, tracker: &Arc<Tracker>) -> NewerRecords {
        NewerRecords {
            upstream: upstream.to_owned(),
            faults: faults.clone(),
            tracker: Arc::clone(tracker),
            events: 0,
        }
    }

    /// Whether records of newer versions wait.
    pub fn wait(&self) -> bool {
        self.events > 0
    }

    /// Removes the records of newer versions from what was read, and returns whether there were
    /// any. `now_ms` is the time in milliseconds since 1970. A record without a readable time, or
    /// with a later one, counts as received now.
    pub fn set_aside(&mut self, entries: &mut Vec<Entry>, now_ms: u64) -> bool {
        let read = entries.len();
        entries.retain(|Entry { payload, .. }| {
            let is_newer = is_newer_record(payload);
            if is_newer {
                let received_ms = received_ms(payload).unwrap_or(now_ms);
                self.tracker.set_aside(received_ms.min(now_ms));
            }
            !is_newer
        });
        let newer = (read - entries.len()) as u64;
        if newer == 0 {
            return false;
        }
        let is_first = self.events == 0;
        self.events += newer;
        let events = counted(self.events, "event");
        let text = format!(
            "{events} of upstream {} must wait, because a newer version of pixelgate wrote them",
            self.upstream
        );
        if is_first {
            log::error!("{text}");
        }
        let advice = "Run the newer version again. It delivers them.";
        self.faults.raise(FaultKind::NewerRecords, &self.upstream, text, advice);
        true
    }
}
