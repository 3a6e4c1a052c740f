//! Handles segments that a reader cannot read.
//!
//! The reader tries again each second, and the segment is a fault meanwhile. Records of a lane are
//! read in order, so later records of the same lane wait; other lanes go on. If the device itself
//! has refused bytes for `spool.unreadable_seconds_max`, the segment is read without them (SPEC 6).
//! For a file that is missing or cannot be opened, the reader waits without an end, because its
//! bytes may be intact.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::faults::DiskFaults;
use super::fs::{File, Open, is_absent};
use super::lane::Lane;
use super::read_around::{ReadAround, is_refusal};
use crate::telemetry::faults::FaultKind;

/// Why a segment could not be read.
pub enum Unread {
    /// The file is missing, which is a fault of the lane: see `missing.rs`.
    Missing { number: u64 },
    /// The file could not be opened.
    Open { number: u64, error: io::Error },
    /// The open file could not be read.
    Read { number: u64, error: io::Error },
}

/// The segments that one upstream's reader waits for, at most one of each lane.
pub struct Unreadable {
    faults: Arc<DiskFaults>,
    upstream: String,
    /// The `spool.unreadable_seconds_max` in force.
    limit_seconds: Arc<AtomicU64>,
    waits: BTreeMap<u64, Wait>,
}

struct Wait {
    number: u64,
    /// The subject of the fault: the path of the file and the upstream. `None` if the file is
    /// missing.
    subject: Option<String>,
    /// Whether sectors that the device refuses count as damage.
    around: bool,
}

impl Unreadable {
    /// An empty list.
    pub fn new(
        faults: Arc<DiskFaults>,
        upstream: &str,
        limit_seconds: Arc<AtomicU64>,
    ) -> Unreadable {
        Unreadable { faults, upstream: upstream.to_owned(), limit_seconds, waits: BTreeMap::new() }
    }

    /// Opens a segment to read.
    pub fn open(&self, lane: &Lane, number: u64) -> Result<Arc<dyn File>, Unread> {
        let file = lane.fs().open(&lane.segment_path(number), Open::Read);
        if is_absent(&file) {
            return Err(Unread::Missing { number });
        }
        let file = file.map_err(|error| Unread::Open { number, error })?;
        let wait = self.waits.get(&lane.id);
        Ok(match wait.is_some_and(|wait| wait.number == number && wait.around) {
            true => Arc::new(ReadAround(file)),
            false => file,
        })
    }

    /// Begins to wait, or goes on. `trusted` says that the device works otherwise, so that bytes
    /// that it has refused for long enough can be given up.
    pub fn wait_for(&mut self, lane: &Lane, unread: Unread, trusted: bool) {
        let (number, is_read, error) = match unread {
            Unread::Missing { number } => {
                self.end(lane.id);
                self.waits.insert(lane.id, Wait { number, subject: None, around: false });
                return;
            }
            Unread::Open { number, error } => (number, false, error),
            Unread::Read { number, error } => (number, true, error),
        };
        if self.waits.get(&lane.id).is_some_and(|wait| wait.number != number) {
            self.end(lane.id);
        }
        let path = lane.segment_path(number);
        let subject = format!("{} (upstream {})", path.display(), self.upstream);
        let lasts = self.faults.raise(FaultKind::SpoolSegment, &subject, "reading", &error);
        let limit = Duration::from_secs(self.limit_seconds.load(Relaxed));
        let around = is_read && trusted && is_refusal(&error) && lasts >= limit;
        let wait = Wait { number, subject: Some(subject), around };
        let before = self.waits.insert(lane.id, wait);
        if around && before.is_none_or(|before| !before.around) {
            ::log::error!("spool: unreadable parts of {} are given up: {error}", path.display());
        }
    }

    /// Ends the wait, because the lane can be read again.
    pub fn is_over(&mut self, lane: u64) {
        match self.waits.get(&lane) {
            Some(wait) if wait.around => self.clear(wait),
            _ => self.end(lane),
        }
    }

    /// Whether a segment cannot be read now.
    pub fn is_waiting(&self) -> bool {
        self.waits.values().any(|wait| !wait.around)
    }

    /// Ends the waits for all lanes but these.
    pub fn retain(&mut self, lanes: &[Arc<Lane>]) {
        let gone = |id: &u64| lanes.iter().all(|lane| lane.id != *id);
        let gone: Vec<u64> = self.waits.keys().copied().filter(gone).collect();
        gone.into_iter().for_each(|id| self.end(id));
    }

    fn end(&mut self, lane: u64) {
        if let Some(wait) = self.waits.remove(&lane) {
            self.clear(&wait);
        }
    }

    fn clear(&self, wait: &Wait) {
        if let Some(subject) = &wait.subject {
            self.faults.clear(FaultKind::SpoolSegment, subject);
        }
    }
}
