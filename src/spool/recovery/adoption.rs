//! Lists the lanes of a spool's folder, and takes over those whose process has ended.
//!
//! Holding a lane takes three open files, and two more for each upstream. So that any number of
//! lanes can be adopted with any limit of open files above 256 (SPEC 6), only the oldest lanes are
//! held. For the others, only the counts and the age of the oldest event are kept in memory, and
//! they are adopted again when older lanes are delivered and removed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::living::{AllSeen, Living, Reading};
use super::oldest::oldest_ms;
use super::quarantine::Quarantine;
use super::recover::{Adoption, AdoptionInputs, adopt};
use crate::spool::faults::DiskFaults;
use crate::spool::fs::{File, Fs, Open};
use crate::spool::lane::Lane;
use crate::spool::lane_files::{lane_dir, lane_id};
use crate::spool::metering::book::Book;
use crate::spool::read::counts::Counts;
use crate::spool::read::cursor::LaneKey;
use crate::spool::read_around::is_refusal;
use crate::spool::routing::Routing;
use crate::telemetry::faults::FaultKind;

/// The lock of the spool's folder, which a process holds while it creates or adopts lanes.
pub const SPOOL_LOCK: &str = "lock";
/// The open files of a lane that do not depend on the upstreams: the lock, the cursor and the
/// counts.
const FILES_PER_LANE: usize = 3;
/// The open files of a lane for each upstream: the segment that is read, and the acknowledgements.
const FILES_PER_UPSTREAM: usize = 2;

/// Adopts the lanes of one spool.
pub struct Adopter {
    pub fs: Arc<dyn Fs>,
    pub root: PathBuf,
    pub upstreams: Vec<String>,
    pub routing: Routing,
    /// See [`Env::received_ms`](crate::spool::Env::received_ms).
    pub received_ms: fn(record: &[u8]) -> Option<u64>,
    pub book: Arc<Book>,
    pub quarantine: Arc<Quarantine>,
    pub faults: Arc<DiskFaults>,
    /// `spool.unreadable_seconds_max`.
    pub unreadable_seconds_max: Arc<AtomicU64>,
    /// The most files that adopted lanes hold open.
    pub files_max: usize,
}

/// The outcome of adopting several lanes.
#[derive(Default)]
pub struct Adoptions {
    /// The lanes that were taken over and are held, oldest first.
    pub adopted: Vec<Arc<Lane>>,
    /// The lanes that could be taken over but are not held now, oldest first.
    pub unheld: Vec<Unheld>,
    /// The numbers of the lanes whose processes live.
    pub of_other_processes: Vec<u64>,
    /// The totals of these lanes, as far as they could be read.
    pub living: Vec<Living>,
    /// The lanes whose totals another lane has, and which only need to be removed.
    pub absorbed: Vec<LaneKey>,
}

/// A lane that waits until older ones are delivered.
pub struct Unheld {
    pub key: LaneKey,
    /// The counts of each upstream, in the order of the configuration.
    pub counts: Vec<Counts>,
    /// When the oldest event was received that waits for each upstream: see `oldest.rs`.
    pub oldest_ms: Vec<Option<u64>>,
    /// The upstreams that are not configured any more, each with the number of events that wait.
    pub removed: Vec<(String, u64)>,
    pub held_bytes: u64,
}

/// Takes the lock of the folder. `None` while another process creates or adopts lanes.
pub fn lock_spool(fs: &dyn Fs, root: &Path) -> io::Result<Option<Arc<dyn File>>> {
    let lock = fs.open(&root.join(SPOOL_LOCK), Open::Ensure)?;
    Ok(lock.try_lock()?.then_some(lock))
}

/// The lanes that a spool's folder holds, oldest first. A file with the name of a lane counts as
/// one, so that it becomes a fault and no new lane takes its number.
pub fn lane_ids(fs: &dyn Fs, root: &Path) -> io::Result<Vec<u64>> {
    let entries = fs.list(root)?;
    let mut ids: Vec<u64> = entries.iter().filter_map(|entry| lane_id(&entry.name)).collect();
    ids.sort_unstable();
    Ok(ids)
}

impl Adopter {
    /// The most adopted lanes that are held at a time.
    pub fn held_max(&self) -> usize {
        (self.files_max / (FILES_PER_LANE + FILES_PER_UPSTREAM * self.upstreams.len())).max(1)
    }

    /// Adopts each of these lanes whose process has ended, and holds up to `room` of them. The
    /// caller holds the lock of the folder, because a lane that is just being created would look as
    /// if its process had ended. A lane that cannot be read becomes a fault, and is tried again at
    /// a later turn. `seen` is what was read before of lanes whose processes live.
    pub fn adopt(&self, ids: &[u64], room: usize, seen: &AllSeen) -> Adoptions {
        let mut found = Adoptions::default();
        // A lane names the lanes that were folded into it, and where their counts count depends on
        // whether their folders exist. No folder can be removed while the lock is held.
        let lanes = lane_ids(&*self.fs, &self.root);
        for &id in ids {
            let subject = lane_dir(&self.root, id).display().to_string();
            match self.adopt_one(id, &subject, &lanes, seen) {
                Ok(Adoption::Adopted(lane)) => {
                    found.absorbed.extend_from_slice(&lane.state().absorbed);
                    if found.adopted.len() < room {
                        found.adopted.push(lane);
                    } else {
                        found.unheld.push(self.unheld(&lane));
                    }
                }
                Ok(Adoption::Living { absorbed, totals }) => {
                    found.of_other_processes.push(id);
                    found.absorbed.extend(absorbed);
                    match totals {
                        Ok(totals) => found.living.extend(totals),
                        Err(error) => {
                            self.fault(&subject, "reading the totals of", &error);
                            continue;
                        }
                    }
                }
                // The process of the lane has removed it since the listing.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && lane_ids(&*self.fs, &self.root).is_ok_and(|ids| !ids.contains(&id)) => {}
                Err(error) => {
                    self.fault(&subject, "taking over", &error);
                    continue;
                }
            }
            self.faults.clear(FaultKind::SpoolLane, &subject);
        }
        found
    }

    fn unheld(&self, lane: &Lane) -> Unheld {
        let (routing, now_ms) = (&self.routing, self.book.now_ms());
        let oldest_ms = oldest_ms(lane, &self.upstreams, routing, self.received_ms, now_ms);
        let state = lane.state();
        let counts = state.positions.iter().map(|position| position.totals(state.end())).collect();
        let removed = state.waiting_for_removed(self.upstreams.len()).collect();
        let held_bytes = state.segment_index.held_bytes(state.low());
        Unheld { key: lane.key(), counts, oldest_ms, removed, held_bytes }
    }

    /// Raises a fault for each of these lanes. Without the lock of the folder, which cannot be
    /// taken on a read-only disk, no lane can be taken over.
    pub fn refuse(&self, ids: &[u64], error: &io::Error) {
        for &id in ids {
            let subject = lane_dir(&self.root, id).display().to_string();
            self.fault(&subject, "taking over", error);
        }
    }

    fn fault(&self, subject: &str, doing: &'static str, error: &io::Error) {
        _ = self.faults.raise(FaultKind::SpoolLane, subject, doing, error);
    }

    /// Adopts one lane. If the device has refused to read some of its sectors for
    /// `spool.unreadable_seconds_max`, the lane is adopted without them.
    fn adopt_one(
        &self,
        id: u64,
        subject: &str,
        lanes: &io::Result<Vec<u64>>,
        seen: &AllSeen,
    ) -> io::Result<Adoption> {
        let adopt = |around| {
            let Adopter { fs, root, upstreams, routing, quarantine, book, .. } = self;
            let lanes = match lanes {
                Ok(lanes) => lanes,
                Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
            };
            let reading = &Reading { upstreams, lanes, book, seen };
            let with = AdoptionInputs { routing, quarantine, reading };
            adopt(fs, root, id, &with, around)
        };
        let error = match adopt(false) {
            Err(error) if is_refusal(&error) => error,
            other => return other,
        };
        let lasts = self.faults.raise(FaultKind::SpoolLane, subject, "taking over", &error);
        let limit = Duration::from_secs(self.unreadable_seconds_max.load(Relaxed));
        if lasts < limit { Err(error) } else { adopt(true) }
    }
}
