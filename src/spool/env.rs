//! What a spool gets from outside: its file system, clock, histogram and list of faults; the
//! functions that read a record's route, portal and time; the limit of open files; and whether the
//! spool may open on a disk that takes no events.

use std::sync::Arc;

use super::fs::{Fs, SystemFs};
use super::metering::Metering;
use super::routing::Routing;
use crate::clock::{Clock, SystemClock};
use crate::telemetry::faults::Faults;

/// The part of the process's limit of open files that the lanes of earlier processes may use.
const LANES_PART_OF_LIMIT: usize = 4;

/// What a spool gets from outside. Tests put a simulated disk and clock here.
#[derive(Clone)]
pub struct Env {
    /// The file system.
    pub fs: Arc<dyn Fs>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// `pixelgate_spool_commit_seconds`: seconds from a group's first append to its answer,
    /// observed once for each group.
    pub commit_seconds: Option<prometheus::Histogram>,
    /// The list to which the spool adds its faults.
    pub faults: Faults,
    /// The functions that read which upstreams a record is meant for.
    pub routing: Routing,
    /// The function that reads the portal and the day for which a record counts.
    pub metering: Metering,
    /// Reads when a record was received, in milliseconds since 1970, UTC. `None` if the record does
    /// not say it.
    pub received_ms: fn(record: &[u8]) -> Option<u64>,
    /// The most files that the lanes of earlier processes hold open.
    pub lane_files_max: usize,
    /// Whether opening fails if the disk takes no events. Otherwise the spool refuses events until
    /// the disk takes them.
    pub needs_disk: bool,
}

impl Env {
    /// The file system, the clock and the file limit of this machine, with a list of faults of its
    /// own, and without a histogram, routes and portals.
    pub fn system() -> Env {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let files = limit.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
        Env {
            fs: Arc::new(SystemFs),
            clock: Arc::new(SystemClock),
            commit_seconds: None,
            faults: Faults::unregistered(),
            routing: Routing::none(),
            metering: Metering::none(),
            received_ms: |_| None,
            lane_files_max: files / LANES_PART_OF_LIMIT,
            needs_disk: false,
        }
    }
}
