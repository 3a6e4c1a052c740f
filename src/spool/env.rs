//! What a spool takes from its surroundings: a file system, a clock, one histogram, the list of
//! faults, how to read a record's route and portal, how many files it may hold open, and whether it
//! may begin without a disk that takes events.

use std::sync::Arc;

use super::fs::{Fs, SystemFs};
use super::metering::Metering;
use super::routing::Routing;
use crate::clock::{Clock, SystemClock};
use crate::telemetry::faults::Faults;

/// The part of the process's limit on open files that the lanes of earlier processes may use.
const LANES_PART_OF_LIMIT: usize = 4;

/// The surroundings of a spool; tests put a simulated disk and clock here.
#[derive(Clone)]
pub struct Env {
    /// The file system.
    pub fs: Arc<dyn Fs>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// `pixelgate_spool_commit_seconds`: seconds from a group's first append to its answer,
    /// observed once for each group.
    pub commit_seconds: Option<prometheus::Histogram>,
    /// Where the spool raises its faults.
    pub faults: Faults,
    /// How to read which upstreams a record is meant for.
    pub routing: Routing,
    /// How to read what a record is counted under.
    pub metering: Metering,
    /// Most files that the lanes of earlier processes hold open.
    pub lane_files_max: usize,
    /// Opening fails where the disk takes no events, instead of refusing them until it does.
    pub needs_disk: bool,
}

impl Env {
    /// The machine's own file system, clock and limit, without a histogram, routes and portals, and
    /// with faults of its own.
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
            lane_files_max: files / LANES_PART_OF_LIMIT,
            needs_disk: false,
        }
    }
}
