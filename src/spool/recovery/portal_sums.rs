//! Sums the totals by portal in the files of the lanes, for the commands `pixelgate spool`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::clock::SystemClock;
use crate::spool::fs::SystemFs;
use crate::spool::metering::book::Book;
use crate::spool::metering::{Metering, contents};
use crate::spool::read::cursor::LaneKey;
use crate::telemetry::faults::Faults;

/// The totals of all portals.
#[derive(Debug, Clone, Copy, Default)]
pub struct PortalSums {
    /// The number of portals that have totals of their own.
    pub portals: usize,
    /// The time from which they count, in milliseconds since 1970, UTC. `None`: no event is counted
    /// yet.
    pub since_ms: Option<u64>,
    /// Accepted events.
    pub accepted: u64,
    /// Rejected events.
    pub rejected: u64,
    /// Deliveries, over all upstreams.
    pub delivered: u64,
}

/// Reads the files of these lanes. `folded` are the lanes whose counts another lane has.
pub(super) fn read(lanes: &[(PathBuf, LaneKey)], folded: &[LaneKey]) -> io::Result<PortalSums> {
    let book = no_book();
    let is_there = |key: LaneKey| lanes.iter().any(|(_, there)| *there == key);
    let is_folded = |key: LaneKey| folded.contains(&key) || !is_there(key);
    for (dir, key) in lanes.iter().filter(|(_, key)| !folded.contains(key)) {
        contents::inspect(&SystemFs, dir, *key, is_folded, &book)?;
    }
    let [accepted, rejected, delivered] = book.sums();
    let (portals, since_ms) = (book.numbers() - 1, book.since_ms());
    Ok(PortalSums { portals, since_ms, accepted, rejected, delivered })
}

/// The offset at which the file of a lane is damaged, if it is.
pub(super) fn damaged_at(dir: &Path, key: LaneKey) -> io::Result<Option<u64>> {
    contents::inspect(&SystemFs, dir, key, |_| true, &no_book())
}

/// A book without upstreams.
fn no_book() -> Book {
    Book::new(Metering::none(), &[], Arc::new(SystemClock), Faults::unregistered())
}
