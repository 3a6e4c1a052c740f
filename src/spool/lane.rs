//! A lane, the part of the spool that one process writes: a folder with a lock, an identity,
//! segments and a cursor.
//!
//! Only one process ever writes records to a lane. Later processes only read them, so recovery
//! never has to append after a torn tail. This file creates, trims and removes the files of a lane.
//! It writes no records and decides nothing about them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

use super::faults::Loss;
use super::fs::{File, Fs, Open, write_full};
use super::hot_tail::HotTail;
use super::lane_files::{CURSOR, FILLING, SPARE_EXTENSION, ignore_absent, segment_name};
use super::metering::journal::Journal;
use super::read::ack_file::AckFile;
use super::read::cursor::{Cursor, CursorFile, LaneKey, POSITIONS_MAX};
use super::read::ledger::ConsumerPosition;
use super::read::named_totals::NamedTotals;
use super::routing::Foreign;
use super::segment_index::SegmentIndex;
use super::write::admission::Bounds;

/// The size of one write of zeros, in bytes.
const FILL_PIECE_BYTES: usize = 1 << 20;
/// The number of writes of zeros after which they are synced, so that the next group of events does
/// not wait until the disk has written a whole segment of zeros.
const FILL_PIECES_PER_SYNC: u64 = 4;

/// A lane whose lock this process holds.
pub struct Lane {
    pub id: u64,
    pub salt: u64,
    /// The newest records, if this process writes the lane around the page cache.
    pub hot_tail: Arc<HotTail>,
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    pub(super) lock: Mutex<Option<Arc<dyn File>>>,
    cursor: Mutex<CursorFile>,
    /// The counts by portal. Locked before the state.
    pub(super) journal: Mutex<Journal>,
    /// The ack file of each position, which the first acknowledgement opens.
    acks: Vec<Mutex<Option<AckFile>>>,
    state: Mutex<LaneState>,
    /// The files from which segments are made. Their names are durable.
    spares: Mutex<Vec<PathBuf>>,
    released: Mutex<Released>,
    /// The number of spares of zeros that were made.
    filled: AtomicU64,
    held_bytes: AtomicU64,
}

/// The spares that a lane may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spares {
    /// The greatest number of spares.
    pub count_max: usize,
    /// The size of each spare, in bytes.
    pub bytes: u64,
}

/// The files that the lane does not need any more and that are not removed or reused yet.
#[derive(Default)]
struct Released {
    /// The segments whose files will be removed or kept as spares.
    segments: Vec<u64>,
    /// The spares whose names are not durable yet. Until then, a crash could bring the file back
    /// under the name of the old segment, with the bytes that were written into the spare.
    spares: Vec<PathBuf>,
    /// Whether the folder was changed and not synced.
    unsynced: bool,
}

/// The part of a lane that changes while it is in use.
pub struct LaneState {
    pub segment_index: SegmentIndex,
    /// The positions of the configured upstreams, in the order of the configuration, and then those
    /// of removed upstreams for which events wait in this lane.
    pub positions: Vec<ConsumerPosition>,
    /// The lanes whose totals are folded into the positions of this one and whose folders may still
    /// exist. The cursor names them until they are removed, so that no process counts them again.
    pub absorbed: Vec<LaneKey>,
    /// The totals of folded lanes for removed upstreams that have no position here.
    pub removed: NamedTotals,
    /// Whether the cursor on disk is older than this state.
    pub dirty: bool,
    /// The watermarks of the two slots on disk, the newer one last. Only records before both may be
    /// trimmed, so that either slot alone is enough for recovery.
    saved: [u64; 2],
    /// The file `portals` of the lane counts every record before this number. Only these records
    /// may be trimmed.
    pub counted: u64,
    /// The sequence number after the last record that was answered with 200. Readers may not have
    /// reached it.
    pub accepted: u64,
    /// Whether a record of the lane is not meant for all upstreams.
    pub routed: bool,
    /// The segments whose files were found to be missing while the lane was in use.
    pub vanished: BTreeSet<u64>,
    /// What the start found to be lost. It is reported unless another lane has the totals of this
    /// one: then a process has ended while it removed the lane.
    pub losses: Vec<Loss>,
}

impl LaneState {
    /// The number before which every upstream has acknowledged every record; 0 without upstreams.
    pub fn low(&self) -> u64 {
        self.positions.iter().map(|position| position.low).min().unwrap_or(0)
    }

    /// The number after the last record, whether it is readable or not yet.
    pub fn end(&self) -> u64 {
        self.segment_index.end().max(self.accepted)
    }

    /// The upstreams that are not configured any more, whose positions follow the first
    /// `configured` ones, each with the number of events that wait for it.
    pub fn waiting_for_removed(&self, configured: usize) -> impl Iterator<Item = (String, u64)> {
        let removed = self.positions.iter().skip(configured);
        removed.map(|position| (position.name.clone(), position.totals(self.end()).pending()))
    }

    /// Adds the counts of foreign records, in the change of the state that publishes or answers
    /// them.
    pub fn add_foreign(&mut self, foreign: &mut Foreign) {
        let Some(counts) = foreign.take() else { return };
        for (position, count) in self.positions.iter_mut().zip(counts) {
            position.foreign += count;
        }
        (self.routed, self.dirty) = (true, true);
    }

    /// Moves totals out of `removed` to the positions of the same names: these upstreams are
    /// configured again.
    pub fn take_back_totals(&mut self) {
        for position in &mut self.positions {
            position.carried.add(self.removed.take(&position.name).unwrap_or_default());
        }
        self.removed.0.truncate(POSITIONS_MAX - self.positions.len());
    }

    /// Takes over the totals of a delivered lane.
    pub fn absorb(&mut self, lane: LaneKey, state: &LaneState) {
        // The configured upstreams come first in both lanes, in the same order.
        let (end, configured) = (state.end(), self.positions.len());
        for (mine, theirs) in self.positions.iter_mut().zip(&state.positions) {
            mine.carried.add(theirs.totals(end));
        }
        let names_max = POSITIONS_MAX - configured;
        for position in state.positions.iter().skip(configured) {
            self.removed.add(&position.name, position.totals(end), names_max);
        }
        for (name, totals) in &state.removed.0 {
            self.removed.add(name, *totals, names_max);
        }
        self.absorbed.push(lane);
        self.dirty = true;
    }

    /// Whether the lane is sealed and every upstream has acknowledged all of its records.
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
            removed: NamedTotals::default(),
            dirty: true,
            saved: [0, 0],
            counted: journal.low(),
            accepted,
            routed: false,
            vanished: BTreeSet::new(),
            losses: Vec::new(),
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

    /// Updates the bytes that `bounds` counts as held by this lane. Called with the state locked,
    /// so that calls take effect in the order of the changes.
    pub fn publish_held(&self, state: &LaneState, bounds: &Bounds) {
        let now = state.segment_index.held_bytes(state.low());
        let before = self.held_bytes.swap(now, Relaxed);
        bounds.add_held_bytes(now.wrapping_sub(before));
    }

    /// Removes the bytes of this lane from those that `bounds` counts as held.
    pub fn withdraw_held(&self, bounds: &Bounds) {
        bounds.add_held_bytes(self.held_bytes.swap(0, Relaxed).wrapping_neg());
    }

    /// Writes the cursor and makes it durable. Records that both slots have passed may be trimmed.
    pub fn save_cursor(&self) -> io::Result<()> {
        let mut file = self.cursor.lock();
        self.find_cursor(&mut file)?;
        let (cursor, low) = {
            let mut state = self.state();
            state.dirty = false;
            let cursor = Cursor {
                lane: self.id,
                salt: self.salt,
                absorbed: state.absorbed.clone(),
                positions: state.positions.clone(),
                routed: state.routed,
                end: Some(state.end()),
                last_segment: Some(state.segment_index.last_number()),
                removed: state.removed.clone(),
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
            // The other slot follows at the next turn, and then the segments may be trimmed.
            state.dirty |= state.saved[0] != low;
        }
        saved
    }

    /// Whether a following process would not find the cursor in this lane.
    pub fn has_lost_cursor(&self) -> bool {
        let id = self.cursor.lock().id();
        id.is_ok_and(|id| self.has_lost(&self.dir.join(CURSOR), id))
    }

    /// Makes the cursor anew if its file was removed or replaced, because a following process would
    /// not find it.
    fn find_cursor(&self, file: &mut CursorFile) -> io::Result<()> {
        let path = self.dir.join(CURSOR);
        if !self.has_lost(&path, file.id()?) {
            return Ok(());
        }
        ::log::warn!("spool: {} was removed or replaced, and is made anew", path.display());
        let anew = self.fs.open(&path, Open::Ensure)?;
        self.fs.sync_dir(&self.dir)?;
        file.replace(anew);
        // Nothing is trimmed before both slots are written.
        self.state().saved = [0, 0];
        Ok(())
    }

    /// Writes the acknowledgements of an upstream in this lane into the page cache.
    pub fn save_acks(&self, upstream: usize) -> io::Result<()> {
        let mut held = self.acks[upstream].lock();
        let file = self.acks_file(&mut held, upstream)?;
        if !file.is_due() {
            return Ok(());
        }
        // The state is read under the lock of the file, so that a later write never holds an older
        // state.
        let state = self.state();
        let position = &state.positions[upstream];
        let slot = file.encode(self.key(), position);
        let is_through =
            state.segment_index.is_sealed() && position.low >= state.segment_index.end();
        drop(state);
        let written = file.write(&slot);
        if is_through {
            // An upstream that has acknowledged the whole lane needs no open file.
            *held = None;
        }
        written
    }

    /// Makes the acknowledgements of an upstream durable in its ack file, because the cursor has no
    /// room for them.
    fn sync_acks(&self, upstream: usize) -> io::Result<()> {
        let mut held = self.acks[upstream].lock();
        let file = self.acks_file(&mut held, upstream)?;
        let slot = file.encode(self.key(), &self.state().positions[upstream]);
        file.write(&slot)?;
        let (to_sync, written, has_name) = file.newest();
        drop(held);
        // The lock is released here, so that acknowledgements do not wait for the disk.
        to_sync.sync_data()?;
        if !has_name {
            self.fs.sync_dir(&self.dir)?;
        }
        if let Some(file) = &mut *self.acks[upstream].lock() {
            file.keep(written);
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

    /// Removes segments that both cursor slots have passed, or keeps them as spares. A file that
    /// cannot be removed does not stop the removal of the others, and is tried again at the next
    /// call.
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

    /// Makes the names of new spares durable, so that they can be used.
    fn sync_released(&self, released: &mut Released) -> io::Result<()> {
        if released.unsynced {
            self.fs.sync_dir(&self.dir)?;
            released.unsynced = false;
            self.spares().append(&mut released.spares);
        }
        Ok(())
    }

    /// Removes a segment that never became part of the lane, now or at a later [`Lane::trim`].
    pub fn discard_segment(&self, number: u64) {
        if ignore_absent(self.fs.remove_file(&self.segment_path(number))).is_err() {
            self.released.lock().segments.push(number);
        }
    }

    /// Makes a spare of `bytes` zeros. Gives up when `go_on` returns false.
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
        // The blocks are reserved first, so that a disk without room fails before a write.
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

    /// Takes a spare, which the caller renames and writes.
    pub fn take_spare(&self) -> Option<PathBuf> {
        self.spares().pop()
    }

    /// Whether there is a spare.
    pub fn has_spare(&self) -> bool {
        !self.spares().is_empty()
    }

    /// Removes the spares. A file that cannot be removed now is removed with the lane.
    pub fn drop_spares(&self) {
        for spare in std::mem::take(&mut *self.spares()) {
            _ = self.fs.remove_file(&spare);
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.spares.lock()
    }

    /// Releases the lock, so that another process may adopt the lane.
    pub fn release(&self) {
        *self.lock.lock() = None;
    }
}
