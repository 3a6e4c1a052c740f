//! One process's part of the spool: a folder with a lock, an identity, segments and a cursor.
//!
//! A lane is written by one process in its life. Its successors only read it: that is why
//! recovery never has to append behind a torn tail.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bounds::Bounds;
use super::cursor::{Cursor, CursorFile, LaneKey};
use super::format::SegmentHeader;
use super::fs::{File, Fs, Open, write_full};
use super::ledger::Account;
use super::log::Log;

/// The file that carries the lane's lock and repeats its salt.
pub(super) const IDENTITY: &str = "lane";
pub(super) const CURSOR: &str = "cursor";
/// What a trimmed segment that is kept to be written again ends with.
const SPARE_SUFFIX: &str = ".spare";
/// A segment in the making: no record in it was ever answered.
pub(super) const MAKING: &str = "making";

const LOCK_TRIES: u32 = 1_000;

/// A lane that this process holds the lock of.
pub struct Lane {
    pub id: u64,
    pub salt: u64,
    dir: PathBuf,
    fs: Arc<dyn Fs>,
    lock: Mutex<Option<Arc<dyn File>>>,
    cursor: Mutex<CursorFile>,
    state: Mutex<State>,
    /// Numbers of the segments that are kept to be written again; their names are durable.
    spares: Mutex<Vec<u64>>,
    held_bytes: AtomicU64,
}

/// Which trimmed segments are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spares {
    /// How many, at most.
    pub count_max: usize,
    /// Only those of this size.
    pub bytes: u64,
}

/// What changes.
pub struct State {
    pub log: Log,
    /// One for each configured upstream, in the configuration's order.
    pub accounts: Vec<Account>,
    /// Lanes whose totals are folded into this one's accounts.
    pub absorbed: Vec<LaneKey>,
    /// The cursor on disk is behind.
    pub dirty: bool,
    /// Watermarks of the two slots on disk, the newer last. Only what both have passed may be
    /// trimmed, so that either slot is enough.
    saved: [u64; 2],
    /// Sequence number behind the last record that was answered for. Readers may be behind it.
    pub accepted: u64,
}

impl State {
    /// Everything before it has its fate everywhere. Without upstreams nothing has.
    pub fn low(&self) -> u64 {
        self.accounts.iter().map(|account| account.low).min().unwrap_or(0)
    }

    /// The number behind the last record, readable or not yet.
    pub fn end(&self) -> u64 {
        self.log.end().max(self.accepted)
    }

    /// Sealed, and every upstream is through with it.
    pub fn is_done(&self) -> bool {
        let end = self.log.end();
        self.log.is_sealed()
            && !self.accounts.is_empty()
            && self.accounts.iter().all(|account| account.low >= end)
    }
}

impl Lane {
    /// Puts a lane together from its parts.
    pub(super) fn assemble(
        fs: Arc<dyn Fs>,
        place: (u64, PathBuf),
        salt: u64,
        lock: Arc<dyn File>,
        cursor: CursorFile,
        log: Log,
        accounts: Vec<Account>,
    ) -> Lane {
        let accepted = log.end();
        let state =
            State { log, accounts, absorbed: Vec::new(), dirty: true, saved: [0, 0], accepted };
        Lane {
            id: place.0,
            salt,
            dir: place.1,
            fs,
            lock: Mutex::new(Some(lock)),
            cursor: Mutex::new(cursor),
            state: Mutex::new(state),
            spares: Mutex::new(Vec::new()),
            held_bytes: AtomicU64::new(0),
        }
    }

    /// Makes a new lane: folder, lock, identity, first cursor; all of it durable.
    pub fn create(
        fs: &Arc<dyn Fs>,
        root: &Path,
        id: u64,
        salt: u64,
        upstreams: &[String],
    ) -> io::Result<Lane> {
        let dir = lane_dir(root, id);
        fs.create_dir_all(&dir)?;
        let lock = fs.open(&dir.join(IDENTITY), Open::Create)?;
        take_lock(&*lock)?;
        // The identity has the form of a segment's header: number 0 is no segment.
        let identity = SegmentHeader { lane: id, number: 0, base_seq: 1, salt, recycled: false };
        write_full(&*lock, &identity.encode(), 0)?;
        lock.sync_data()?;
        let (cursor, _) = CursorFile::load(fs.open(&dir.join(CURSOR), Open::Create)?)?;
        let accounts = upstreams.iter().map(|name| Account::new(name, 1)).collect();
        let lane =
            Lane::assemble(Arc::clone(fs), (id, dir), salt, lock, cursor, Log::new(1), accounts);
        lane.save_cursor()?;
        fs.sync_dir(&lane.dir)?;
        fs.sync_dir(root)?;
        Ok(lane)
    }

    pub fn key(&self) -> LaneKey {
        (self.id, self.salt)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        // A panic below this lock leaves counters, not invariants of memory.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Tells the gate what this lane holds. Called with the state locked, so that a later call
    /// never brings older news.
    pub fn publish_held(&self, state: &State, bounds: &Bounds) {
        let now = state.log.held_bytes(state.low());
        let before = self.held_bytes.swap(now, Relaxed);
        bounds.add_held_bytes(now.wrapping_sub(before));
    }

    /// Writes the cursor and makes it durable, then lets go of what both slots have passed.
    pub fn save_cursor(&self) -> io::Result<()> {
        let mut file = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let (cursor, low) = {
            let mut state = self.state();
            state.dirty = false;
            let cursor = Cursor {
                lane: self.id,
                salt: self.salt,
                absorbed: state.absorbed.clone(),
                accounts: state.accounts.clone(),
            };
            (cursor, state.low())
        };
        let saved = file.save(&cursor);
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

    /// Removes, or keeps as spares, segments that both cursor slots have passed.
    pub fn trim(&self, keep: Option<Spares>) -> io::Result<()> {
        let numbers = {
            let mut state = self.state();
            let low = state.saved[0];
            state.log.trim(low)
        };
        if numbers.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        let places = keep.map_or(0, |keep| keep.count_max.saturating_sub(self.spares().len()));
        for number in numbers {
            let path = self.segment_path(number);
            let size = || self.fs.open(&path, Open::Read).and_then(|file| file.bytes());
            let fits = |keep: Spares| size().is_ok_and(|size| size == keep.bytes);
            if kept.len() < places && keep.is_some_and(fits) {
                self.fs.rename(&path, &self.spare_path(number))?;
                kept.push(number);
            } else {
                ignore_absent(self.fs.remove_file(&path))?;
            }
        }
        self.fs.sync_dir(&self.dir)?;
        // Not before: what is written into a spare must not come back as the old segment.
        self.spares().extend(kept);
        Ok(())
    }

    /// Takes a spare, to be renamed and written.
    pub fn take_spare(&self) -> Option<PathBuf> {
        let number = self.spares().pop()?;
        Some(self.spare_path(number))
    }

    /// Gives the disk its room back. What cannot be removed now goes with the lane.
    pub fn drop_spares(&self) {
        for number in std::mem::take(&mut *self.spares()) {
            _ = self.fs.remove_file(&self.spare_path(number));
        }
    }

    fn spares(&self) -> MutexGuard<'_, Vec<u64>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare_path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:010}{SPARE_SUFFIX}"))
    }

    /// Gives the lock back: another process may adopt the lane.
    pub fn release(&self) {
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Removes what a dead lane's process had in the making or had kept to write again. Where that
/// fails it does no harm, and goes with the lane.
pub(super) fn remove_leftovers(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    for entry in fs.list(dir)? {
        let name = entry.name.to_string_lossy();
        if name == MAKING || name.ends_with(SPARE_SUFFIX) {
            _ = fs.remove_file(&dir.join(&entry.name));
        }
    }
    Ok(())
}

/// Removes a lane's folder. The identity goes last: while it is there, so is its lock.
pub(super) fn remove_lane(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    for entry in fs.list(dir)? {
        if entry.name != IDENTITY {
            ignore_absent(fs.remove_file(&dir.join(entry.name)))?;
        }
    }
    ignore_absent(fs.remove_file(&dir.join(IDENTITY)))?;
    fs.remove_dir(dir)
}

/// Locks a new lane. Nobody else wants it: at most somebody looks, for a moment, if it is locked.
fn take_lock(lock: &dyn File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        if lock.try_lock()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::other("the new lane is locked by somebody else"))
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The folder of a lane.
pub(super) fn lane_dir(root: &Path, id: u64) -> PathBuf {
    root.join(format!("lane-{id:08}"))
}

/// The lane that a folder belongs to.
pub(super) fn lane_id(name: &std::ffi::OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix("lane-")?.parse().ok()
}

/// The file of a segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// The segment that a file is.
pub(super) fn segment_number(name: &std::ffi::OsStr) -> Option<u64> {
    name.to_str()?.strip_suffix(".seg")?.parse().ok()
}
