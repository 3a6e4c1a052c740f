//! A lane, one process's part of the spool: a folder with a lock, identity, segments and cursor.
//!
//! A lane is written by one process in its life. Later processes only read it, so recovery never
//! has to append behind a torn tail. This file makes, trims and removes a lane's files; it writes
//! no records and decides nothing about them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

use super::fs::{File, FileId, Fs, Open, write_full};
use super::hot_tail::HotTail;
use super::lane_files::{FILLING, IDENTITY, SPARE_EXTENSION, ignore_absent, segment_name};
use super::metering::journal::Journal;
use super::read::ack_file::AckFile;
use super::read::cursor::{Cursor, CursorFile, LaneKey};
use super::read::ledger::ConsumerPosition;
use super::routing::Foreign;
use super::segment_index::SegmentIndex;
use super::write::admission::Bounds;

/// Zeros are written in pieces of this size.
const FILL_PIECE_BYTES: usize = 1 << 20;
/// Zeros are synced after this many pieces, so that the disk never has a whole segment of zeros to
/// write before the next group of events.
const FILL_PIECES_PER_SYNC: u64 = 4;

/// A lane whose lock this process holds.
pub struct Lane {
    pub id: u64,
    pub salt: u64,
    /// Its newest records, if this process writes it around the page cache.
    pub hot_tail: Arc<HotTail>,
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    lock: Mutex<Option<Arc<dyn File>>>,
    cursor: Mutex<CursorFile>,
    /// The counts by portal. Locked before the state.
    pub(super) journal: Mutex<Journal>,
    /// One for each position; opened by the first acknowledgement.
    acks: Vec<Mutex<Option<AckFile>>>,
    state: Mutex<LaneState>,
    /// Files to make segments of; their names are durable.
    spares: Mutex<Vec<PathBuf>>,
    released: Mutex<Released>,
    /// Spares of zeros that were made.
    filled: AtomicU64,
    held_bytes: AtomicU64,
}

/// Which spares a lane has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spares {
    /// How many, at most.
    pub count_max: usize,
    /// Of this size each.
    pub bytes: u64,
}

/// Files that the lane does not need any more, until the disk has let them go.
#[derive(Default)]
struct Released {
    /// Segments whose files are to be removed or kept as spares.
    segments: Vec<u64>,
    /// Spares whose names are not durable yet. Until then a crash could bring the file back under
    /// the name of the old segment, with what was written into the spare.
    spares: Vec<PathBuf>,
    /// The folder was changed and not synced.
    unsynced: bool,
}

/// What changes while the lane is in use.
pub struct LaneState {
    pub segment_index: SegmentIndex,
    /// One for each configured upstream, in the configuration's order, and behind them those of
    /// removed upstreams for which events wait here.
    pub positions: Vec<ConsumerPosition>,
    /// Lanes whose totals are folded into this one's positions and whose folders may still be
    /// there. The cursor names them until they are removed, so that no process counts them again.
    pub absorbed: Vec<LaneKey>,
    /// The cursor on disk is behind.
    pub dirty: bool,
    /// Watermarks of the two slots on disk, the newer last. Only what both have passed may be
    /// trimmed, so that either slot is enough.
    saved: [u64; 2],
    /// Every record before it is counted by portal in the lane's file. Only that may be trimmed.
    pub counted: u64,
    /// The sequence number behind the last record that was answered with 200. Readers may be
    /// behind it.
    pub accepted: u64,
    /// Whether a record of the lane is not meant for all upstreams.
    pub routed: bool,
}

impl LaneState {
    /// Every record before it is acknowledged by every upstream; 0 without upstreams.
    pub fn low(&self) -> u64 {
        self.positions.iter().map(|position| position.low).min().unwrap_or(0)
    }

    /// The number behind the last record, readable or not yet.
    pub fn end(&self) -> u64 {
        self.segment_index.end().max(self.accepted)
    }

    /// Counts the foreign records among those that are published or answered with this change.
    pub fn add_foreign(&mut self, foreign: &mut Foreign) {
        let Some(counts) = foreign.take() else { return };
        for (position, count) in self.positions.iter_mut().zip(counts) {
            position.foreign += count;
        }
        (self.routed, self.dirty) = (true, true);
    }

    /// Whether it is sealed and every upstream has acknowledged all of it.
    pub fn is_done(&self) -> bool {
        let end = self.segment_index.end();
        self.segment_index.is_sealed()
            && !self.positions.is_empty()
            && self.positions.iter().all(|position| position.low >= end)
    }
}

impl Lane {
    /// Puts a lane together from its parts.
    pub(super) fn assemble(
        fs: Arc<dyn Fs>,
        place: (u64, PathBuf),
        salt: u64,
        lock: Arc<dyn File>,
        (cursor, journal): (CursorFile, Journal),
        segment_index: SegmentIndex,
        positions: Vec<ConsumerPosition>,
    ) -> Lane {
        let accepted = segment_index.end();
        let acks = positions.iter().map(|_| Mutex::default()).collect();
        let state = LaneState {
            segment_index,
            positions,
            absorbed: Vec::new(),
            dirty: true,
            saved: [0, 0],
            counted: journal.low(),
            accepted,
            routed: false,
        };
        Lane {
            id: place.0,
            salt,
            hot_tail: Arc::default(),
            dir: place.1,
            fs,
            lock: Mutex::new(Some(lock)),
            cursor: Mutex::new(cursor),
            journal: Mutex::new(journal),
            acks,
            state: Mutex::new(state),
            spares: Mutex::new(Vec::new()),
            released: Mutex::default(),
            filled: AtomicU64::new(0),
            held_bytes: AtomicU64::new(0),
        }
    }

    pub fn key(&self) -> LaneKey {
        (self.id, self.salt)
    }

    pub fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock()
    }

    pub fn fs(&self) -> &Arc<dyn Fs> {
        &self.fs
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn segment_path(&self, number: u64) -> PathBuf {
        self.dir.join(segment_name(number))
    }

    /// Updates how much the gate counts as held by this lane. Called with the state locked, so that
    /// calls take effect in the order of the changes.
    pub fn publish_held(&self, state: &LaneState, bounds: &Bounds) {
        let now = state.segment_index.held_bytes(state.low());
        let before = self.held_bytes.swap(now, Relaxed);
        bounds.add_held_bytes(now.wrapping_sub(before));
    }

    /// Takes this lane out of what the gate counts as held.
    pub fn withdraw_held(&self, bounds: &Bounds) {
        bounds.add_held_bytes(self.held_bytes.swap(0, Relaxed).wrapping_neg());
    }

    /// Writes the cursor and makes it durable. What both slots have passed may be trimmed.
    pub fn save_cursor(&self) -> io::Result<()> {
        let mut file = self.cursor.lock();
        let (cursor, low) = {
            let mut state = self.state();
            state.dirty = false;
            let cursor = Cursor {
                lane: self.id,
                salt: self.salt,
                absorbed: state.absorbed.clone(),
                positions: state.positions.clone(),
                routed: state.routed,
                counted_to: Some(state.end()),
            };
            (cursor, state.low())
        };
        let saved = file
            .save(&cursor)
            .and_then(|cut| cut.into_iter().try_for_each(|upstream| self.sync_acks(upstream)));
        let mut state = self.state();
        if saved.is_err() {
            state.dirty = true;
        } else {
            state.saved = [state.saved[1], low];
            // The other slot follows at the next turn, and then the segments may go.
            state.dirty |= state.saved[0] != low;
        }
        saved
    }

    /// Writes what an upstream has acknowledged here into the page cache.
    pub fn save_acks(&self, upstream: usize) -> io::Result<()> {
        let mut held = self.acks[upstream].lock();
        let file = self.acks_file(&mut held, upstream)?;
        if !file.is_due() {
            return Ok(());
        }
        // Read under the file's lock, so that a later write is never an older state.
        let state = self.state();
        let position = &state.positions[upstream];
        let slot = file.encode(self.key(), position);
        let is_through =
            state.segment_index.is_sealed() && position.low >= state.segment_index.end();
        drop(state);
        let written = file.write(&slot);
        if is_through {
            // An upstream that is through with a lane keeps no file open.
            *held = None;
        }
        written
    }

    /// Makes an upstream's acknowledgements durable where the cursor has no room for them.
    fn sync_acks(&self, upstream: usize) -> io::Result<()> {
        let mut held = self.acks[upstream].lock();
        let file = self.acks_file(&mut held, upstream)?;
        let slot = file.encode(self.key(), &self.state().positions[upstream]);
        file.write(&slot)?;
        let (to_sync, written, has_name) = file.newest();
        drop(held);
        // Without the lock: acknowledgements do not wait for the disk.
        to_sync.sync_data()?;
        if !has_name {
            self.fs.sync_dir(&self.dir)?;
        }
        if let Some(file) = &mut *self.acks[upstream].lock() {
            file.keep(written);
        }
        Ok(())
    }

    /// Whether the lane is still at its path: a following process would find nothing else.
    pub fn check_place(&self) -> io::Result<()> {
        let Some(lock) = self.lock.lock().clone() else { return Ok(()) };
        self.check_path(&self.dir.join(IDENTITY), lock.id()?)
    }

    /// Whether a segment's file is still at its path.
    pub fn check_segment(&self, number: u64, id: FileId) -> io::Result<()> {
        self.check_path(&self.segment_path(number), id)
    }

    fn check_path(&self, path: &Path, id: FileId) -> io::Result<()> {
        let found = self.fs.id(path).map_err(|error| {
            let text = format!("{} cannot be found any more: {error}", path.display());
            io::Error::new(error.kind(), text)
        })?;
        if found != id {
            let text = format!("another file has taken the place of {}", path.display());
            return Err(io::Error::other(text));
        }
        Ok(())
    }

    fn acks_file<'a>(
        &self,
        held: &'a mut Option<AckFile>,
        upstream: usize,
    ) -> io::Result<&'a mut AckFile> {
        let file = match held.take() {
            Some(file) => file,
            None => {
                let name = self.state().positions[upstream].name.clone();
                AckFile::open(&*self.fs, &self.dir, self.key(), &name)?
            }
        };
        Ok(held.insert(file))
    }

    /// Removes, or keeps as spares, segments that both cursor slots have passed. A file that cannot
    /// be removed does not keep the others, and is tried again at the next call.
    pub fn trim(&self, keep: Option<Spares>) -> io::Result<()> {
        let mut released = self.released.lock();
        {
            let mut state = self.state();
            let low = state.saved[0].min(state.counted);
            released.segments.extend(state.segment_index.trim(low));
        }
        if released.segments.is_empty() && !released.unsynced {
            return Ok(());
        }
        // Another spool may have taken the place of this one.
        self.check_place()?;
        let mut result = Ok(());
        let numbers = std::mem::take(&mut released.segments);
        for number in numbers {
            if let Err(error) = self.release_segment(&mut released, number, keep) {
                released.segments.push(number);
                result = Err(error);
            }
        }
        result.and(self.sync_released(&mut released))
    }

    fn release_segment(
        &self,
        released: &mut Released,
        number: u64,
        keep: Option<Spares>,
    ) -> io::Result<()> {
        let path = self.segment_path(number);
        let spares = self.spares().len() + released.spares.len();
        let size = || self.fs.open(&path, Open::Read).and_then(|file| file.bytes());
        let fits =
            |keep: Spares| spares < keep.count_max && size().is_ok_and(|size| size == keep.bytes);
        if keep.is_some_and(fits) {
            let spare = path.with_extension(SPARE_EXTENSION);
            self.fs.rename(&path, &spare)?;
            released.spares.push(spare);
        } else {
            ignore_absent(self.fs.remove_file(&path))?;
        }
        released.unsynced = true;
        Ok(())
    }

    /// Makes the names of new spares durable, and so fit for use.
    fn sync_released(&self, released: &mut Released) -> io::Result<()> {
        if released.unsynced {
            self.fs.sync_dir(&self.dir)?;
            released.unsynced = false;
            self.spares().append(&mut released.spares);
        }
        Ok(())
    }

    /// Removes a segment that was never part of the lane, now or at a later [`Lane::trim`].
    pub fn discard_segment(&self, number: u64) {
        if ignore_absent(self.fs.remove_file(&self.segment_path(number))).is_err() {
            self.released.lock().segments.push(number);
        }
    }

    /// Makes a spare of `bytes` zeros, unless `go_on` says no on the way.
    pub fn fill_spare(&self, bytes: u64, go_on: impl Fn() -> bool) -> io::Result<()> {
        let filling = self.dir.join(FILLING);
        let filled = self.fill(&filling, bytes, go_on);
        if !matches!(filled, Ok(true)) {
            _ = self.fs.remove_file(&filling);
            return filled.map(drop);
        }
        let number = self.filled.fetch_add(1, Relaxed);
        let spare = self.dir.join(format!("filled-{number}.{SPARE_EXTENSION}"));
        self.fs.rename(&filling, &spare)?;
        let mut released = self.released.lock();
        released.spares.push(spare);
        released.unsynced = true;
        self.sync_released(&mut released)
    }

    fn fill(&self, path: &Path, bytes: u64, go_on: impl Fn() -> bool) -> io::Result<bool> {
        let file = self.fs.open(path, Open::Create)?;
        // Reserved first, so that a disk without room fails before anything is written.
        file.allocate(bytes)?;
        let zeros = vec![0; FILL_PIECE_BYTES.min(bytes as usize)];
        let mut at = 0;
        while at < bytes {
            if !go_on() {
                return Ok(false);
            }
            let piece = zeros.len().min((bytes - at) as usize);
            write_full(&*file, &zeros[..piece], at)?;
            at += piece as u64;
            if at == bytes || (at / FILL_PIECE_BYTES as u64).is_multiple_of(FILL_PIECES_PER_SYNC) {
                file.sync_data()?;
            }
        }
        Ok(true)
    }

    /// Takes a spare, to be renamed and written.
    pub fn take_spare(&self) -> Option<PathBuf> {
        self.spares().pop()
    }

    /// Whether there is a spare.
    pub fn has_spare(&self) -> bool {
        !self.spares().is_empty()
    }

    /// Removes the spares. A file that cannot be removed now goes with the lane.
    pub fn drop_spares(&self) {
        for spare in std::mem::take(&mut *self.spares()) {
            _ = self.fs.remove_file(&spare);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.spares.lock()
    }

    /// Gives the lock back: another process may adopt the lane.
    pub fn release(&self) {
        *self.lock.lock() = None;
    }
}
