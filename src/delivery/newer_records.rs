//! Records that a newer version of this program wrote, as after a downgrade.
//!
//! They are not damaged: they stay pending in the spool, unacknowledged, until a version that knows
//! them delivers them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::event::is_newer_record;
use crate::spool::Entry;
use crate::telemetry::faults::{FaultKind, Faults};

/// Counts the records of newer versions that wait for one upstream, and names them as a fault.
pub struct NewerRecords {
    upstream: String,
    faults: Faults,
    events: AtomicU64,
}

impl NewerRecords {
    /// None so far.
    pub fn new(upstream: &str, faults: &Faults) -> NewerRecords {
        NewerRecords {
            upstream: upstream.to_owned(),
            faults: faults.clone(),
            events: AtomicU64::new(0),
        }
    }

    /// Removes the records of newer versions from what was read.
    pub fn set_aside(&self, entries: &mut Vec<Entry>) {
        let read = entries.len();
        entries.retain(|entry| !is_newer_record(&entry.payload));
        let newer = (read - entries.len()) as u64;
        if newer == 0 {
            return;
        }
        let before = self.events.fetch_add(newer, Relaxed);
        let text = format!(
            "{} events for upstream {} were written by a newer version and wait for it",
            before + newer,
            self.upstream
        );
        if before == 0 {
            log::error!("{text}");
        }
        let advice = "Run the newer version again. It delivers them.";
        self.faults.raise(FaultKind::NewerRecords, &self.upstream, text, advice);
    }
}
