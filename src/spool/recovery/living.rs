//! Reads the totals of a lane whose process lives.
//!
//! During an upgrade the old process holds its lanes until it ends. A process that starts beside it
//! counts these lanes in its totals from its first answer on, as their files have them: the old
//! process writes them once a second. When the old process has ended, the lane is taken over, and
//! the exact totals take the place of these.

use std::io;
use std::path::Path;

use crate::spool::fs::{Fs, Open};
use crate::spool::lane_files::CURSOR;
use crate::spool::metering;
use crate::spool::metering::book::Book;
use crate::spool::read::counts::Counts;
use crate::spool::read::cursor::{Cursor, CursorFile, LaneKey};

/// The totals of a lane whose process lives.
pub struct Living {
    pub key: LaneKey,
    /// The totals of each upstream, in the order of the configuration.
    pub counts: Vec<Counts>,
    /// The totals by portal.
    pub portals: metering::counts::Counts,
    /// The time from which these count, in milliseconds since 1970. 0: from the lane's beginning.
    pub since_ms: u64,
}

/// Reads the cursor of a lane. `None` if it has none yet.
pub fn cursor(fs: &dyn Fs, dir: &Path, id: u64) -> io::Result<Option<Cursor>> {
    let (_, cursor) = CursorFile::load(fs.open(&dir.join(CURSOR), Open::Read)?)?;
    Ok(cursor.filter(|cursor| cursor.lane == id))
}

/// Reads the totals of a lane with this cursor. `lanes` are the lanes whose folders exist.
pub fn totals(
    fs: &dyn Fs,
    dir: &Path,
    cursor: &Cursor,
    upstreams: &[String],
    lanes: &[u64],
    book: &Book,
) -> io::Result<Living> {
    let key = (cursor.lane, cursor.salt);
    let is_folded = |key: LaneKey| cursor.absorbed.contains(&key) || !lanes.contains(&key.0);
    let counted = metering::contents::read(fs, dir, key, is_folded, book)?;
    let since_ms = counted.as_ref().and_then(|counted| counted.since_ms).unwrap_or(0);
    let contents = counted.map(|counted| counted.contents).unwrap_or_default();
    let counted_to = contents.marks.as_ref().map_or(0, |marks| marks.counted_to);
    let end = match cursor.end {
        // The cursor counts foreign records up to its own end only.
        Some(end) if cursor.routed => end,
        end => end.unwrap_or(1).max(counted_to),
    };
    let of = |name: &String| {
        let position = cursor.positions.iter().find(|position| position.name == *name);
        let removed = || cursor.removed.0.iter().find(|(known, _)| known == name);
        match position {
            Some(position) => position.totals(end),
            None => removed().map(|(_, counts)| *counts).unwrap_or_default(),
        }
    };
    let counts = upstreams.iter().map(of).collect();
    Ok(Living { key, counts, portals: contents.counts, since_ms })
}
