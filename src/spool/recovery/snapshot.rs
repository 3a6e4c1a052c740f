//! The files of a lane at one moment, for the commands `pixelgate spool`.
//!
//! Reading them takes no lock, so a living process may change them meanwhile.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::adoption::lane_ids;
use super::count_foreign::{each_routed, stretches};
use super::identity::salt;
use super::positions::restore_foreign;
use super::recover::{Proven, Segment, scan_to_end, survey};
use crate::spool::fs::{File, Fs, Open, SystemFs, is_absent};
use crate::spool::lane_files::{CURSOR, IDENTITY, lane_dir, segment_name};
use crate::spool::read::cursor::{Cursor, CursorFile, LaneKey};
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::routing::Routing;
use crate::spool::segment_index::SegmentIndex;

/// The most attempts to read a lane whose process removes segments meanwhile.
const READ_TRIES: u32 = 100;

/// The content of the files of a lane.
pub struct LaneSnapshot {
    pub id: u64,
    pub dir: PathBuf,
    /// Whether a living process holds the lane.
    pub living: bool,
    pub salt: u64,
    pub cursor: Option<Cursor>,
    /// The segments, in order.
    pub segments: Vec<Segment>,
    /// The same segments, with those that are missing, up to the end of the lane.
    pub segment_index: SegmentIndex,
}

impl LaneSnapshot {
    /// The lanes of a spool, oldest first.
    pub fn all(root: &Path) -> io::Result<Vec<LaneSnapshot>> {
        let mut snapshots = Vec::new();
        for id in lane_ids(&SystemFs, root)? {
            snapshots.extend(read_if_there(root, id)?);
        }
        Ok(snapshots)
    }

    /// Reads one lane.
    pub fn read(root: &Path, id: u64) -> io::Result<LaneSnapshot> {
        let dir = lane_dir(root, id);
        let identity = open_if_there(&dir.join(IDENTITY))?;
        let living = match &identity {
            Some(identity) => !identity.is_unlocked()?,
            None => false,
        };
        let file = open_if_there(&dir.join(CURSOR))?;
        let cursor = file.map(CursorFile::load).transpose()?.and_then(|(_, cursor)| cursor);
        let cursor = cursor.filter(|cursor| cursor.lane == id);
        let salt = salt(&SystemFs, &dir, id, identity.as_deref(), cursor.as_ref())?;
        let survey = survey(&SystemFs, &dir, id, salt, None)?;
        let mut segment_index = SegmentIndex::new(1);
        survey.spans().into_iter().for_each(|span| segment_index.push_span(span));
        let proven = Proven::by(cursor.as_ref(), None);
        let mut end = proven.end;
        if let Some(last) = survey.segments.last() {
            let file = SystemFs.open(&dir.join(segment_name(last.number)), Open::Read)?;
            end = end.max(scan_to_end(&*file, last, salt)?.1);
        }
        let positions = cursor.iter().flat_map(|cursor| &cursor.positions);
        segment_index.seal(positions.map(ConsumerPosition::end).fold(end, u64::max));
        survey.note_missing(proven.last_segment, &mut segment_index);
        let segments = survey.segments;
        Ok(LaneSnapshot { id, dir, living, salt, cursor, segments, segment_index })
    }

    pub fn key(&self) -> LaneKey {
        (self.id, self.salt)
    }

    /// The number after the last record, whether its segment is there or missing.
    pub fn end(&self) -> u64 {
        self.segment_index.end()
    }

    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.dir.join(segment_name(number))
    }

    /// Opens a file of the lane. `None` if there is none of this name.
    pub fn open(&self, name: &str) -> io::Result<Option<Arc<dyn File>>> {
        open_if_there(&self.dir.join(name))
    }

    /// The number at which the segment at this place ends: that at which the next one begins. The
    /// end of the last one is not known beforehand.
    pub fn limit(&self, at: usize) -> u64 {
        self.segments.get(at + 1).map_or(u64::MAX, |next| next.base)
    }

    /// Whether the folder of the lane exists.
    pub fn is_there(&self) -> bool {
        !is_absent(&SystemFs.id(&self.dir))
    }

    /// The positions in the cursor. Foreign records that the cursor does not count yet are counted
    /// here.
    pub fn counted_positions(&self, routing: &Routing) -> Vec<ConsumerPosition> {
        let cursor = self.cursor.as_ref();
        let mut positions = cursor.map_or(Vec::new(), |cursor| cursor.positions.clone());
        let scan = |from, each: &mut dyn FnMut(u64, &[u8])| {
            let stretches = stretches(&self.segment_index, from);
            each_routed(&SystemFs, &self.dir, self.salt, &stretches, from, routing, each);
        };
        restore_foreign(&mut positions, cursor, routing, scan);
        positions
    }
}

/// Reads one lane. `None` if a living process has removed it.
fn read_if_there(root: &Path, id: u64) -> io::Result<Option<LaneSnapshot>> {
    let mut tries = 0;
    loop {
        let read = LaneSnapshot::read(root, id);
        tries += 1;
        if !is_absent(&read) || tries == READ_TRIES {
            return read.map(Some);
        }
        if is_absent(&SystemFs.id(&lane_dir(root, id))) {
            return Ok(None);
        }
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<Arc<dyn File>>> {
    let opened = SystemFs.open(path, Open::Read);
    if is_absent(&opened) { Ok(None) } else { opened.map(Some) }
}
