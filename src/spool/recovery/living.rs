//! Reads the totals of a lane whose process lives.
//!
//! During an upgrade the old process holds its lanes until it ends. A process that starts beside it
//! counts these lanes in its totals from its first answer on, as their files have them: the old
//! process writes them once a second. When the old process has ended, the lane is taken over, and
//! the exact totals take the place of these.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::spool::fs::{Fs, Open};
use crate::spool::lane_files::CURSOR;
use crate::spool::metering::book::Book;
use crate::spool::metering::follow::{Seen, follow};
use crate::spool::metering::living::Found;
use crate::spool::read::counts::Counts;
use crate::spool::read::cursor::{Cursor, CursorFile, LaneKey};

/// The totals of a lane whose process lives.
pub struct Living {
    pub key: LaneKey,
    /// The totals of each upstream, in the order of the configuration.
    pub counts: Vec<Counts>,
    /// The totals by portal, as its file has them.
    pub portals: Found,
    /// What was read of that file. `None`: it was missing, or that of another lane.
    pub seen: Option<Seen>,
}

/// What was read before of the files of these lanes.
pub type AllSeen = BTreeMap<LaneKey, Seen>;

/// Reads the cursor of a lane. `None` if it has none yet.
pub fn cursor(fs: &dyn Fs, dir: &Path, id: u64) -> io::Result<Option<Cursor>> {
    let (_, cursor) = CursorFile::load(fs.open(&dir.join(CURSOR), Open::Read)?)?;
    Ok(cursor.filter(|cursor| cursor.lane == id))
}

/// What is needed to read the totals of a lane, beside its own files.
pub struct Reading<'a> {
    pub upstreams: &'a [String],
    /// The lanes whose folders exist.
    pub lanes: &'a [u64],
    pub book: &'a Book,
    pub seen: &'a AllSeen,
}

/// Reads the totals of a lane with this cursor.
pub fn totals(
    fs: &dyn Fs,
    dir: &Path,
    cursor: &Cursor,
    reading: &Reading<'_>,
) -> io::Result<Living> {
    let &Reading { upstreams, lanes, book, seen } = reading;
    let key = (cursor.lane, cursor.salt);
    let is_folded = |key: LaneKey| cursor.absorbed.contains(&key) || !lanes.contains(&key.0);
    let (portals, seen) = follow(fs, dir, key, &is_folded, book, seen.get(&key))?;
    let counted_to = seen.as_ref().map_or(0, |seen| seen.counted_to);
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
    Ok(Living { key, counts, portals, seen })
}
