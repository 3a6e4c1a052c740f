//! The keeper: one thread that turns once a second and does what need not be done at once.
//!
//! Cursors, trimming, the lanes of processes that are gone, the free space of the disk, the
//! growth rate. Not in the committer's thread, whose answers somebody waits for.

use std::io;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::SpoolState;
use super::fs::{File, Fs, Open};
use super::lane::{IDENTITY, Lane, Spares, lane_dir, lane_id, remove_lane};
use super::read::cursor::LaneKey;
use super::recovery::quarantine::Quarantine;
use super::recovery::recover::{Adopted, adopt, header};

/// Spares of zeros that are made, at most: one is used while the other waits. The third that goes
/// around in a swift flow is a new file that has been trimmed.
const FILLS_MAX: usize = 2;
/// How often the keeper turns.
pub const TURN: Duration = Duration::from_secs(1);
/// The lock of the spool's folder: held while lanes are made and adopted.
const SPOOL_LOCK: &str = "lock";

/// Takes the folder's lock; `None` while another process is making or adopting lanes.
pub fn lock_spool(fs: &dyn Fs, root: &Path) -> io::Result<Option<Arc<dyn File>>> {
    let lock = fs.open(&root.join(SPOOL_LOCK), Open::Ensure)?;
    Ok(lock.try_lock()?.then_some(lock))
}

/// The lanes that a spool's folder holds, oldest first.
pub fn lane_ids(fs: &dyn Fs, root: &Path) -> io::Result<Vec<u64>> {
    let entries = fs.list(root)?;
    let mut ids: Vec<u64> = entries
        .iter()
        .filter(|entry| entry.is_dir)
        .filter_map(|entry| lane_id(&entry.name))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Adopts each of these lanes whose process is gone. Under the folder's lock, so that no lane
/// that is just being made looks dead. A lane that cannot be read is left for a later turn.
pub fn adopt_dead(
    fs: &Arc<dyn Fs>,
    root: &Path,
    ids: &[u64],
    upstreams: &[String],
    quarantine: &Quarantine,
) -> Vec<Adopted> {
    let mut lanes = Vec::new();
    for &id in ids {
        match adopt(fs, root, id, upstreams, quarantine) {
            Ok(Some(adopted)) => lanes.push(adopted),
            Ok(None) => {}
            // Removed by the process that had it, between the listing and the look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => ::log::error!("spool: lane {id} cannot be read yet: {error}"),
        }
    }
    lanes
}

/// The state of the keeping thread.
pub struct Maintenance {
    shared: Arc<SpoolState>,
    cursor_failing: bool,
    /// `spool.bytes_max` was reached at the last turn.
    full: bool,
    /// How often a spare of zeros was begun.
    fills: usize,
}

impl Maintenance {
    pub fn new(shared: Arc<SpoolState>) -> Maintenance {
        Maintenance { shared, cursor_failing: false, full: false, fills: 0 }
    }

    /// Turns until the spool is closed.
    pub fn run(mut self) {
        while !self.shared.keeper_waits(TURN) {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.shared.look_at_disk();
        self.tell_full();
        self.adopt();
        self.fold();
        let result = self.save();
        if let Err(error) = &result
            && !self.cursor_failing
        {
            ::log::error!("spool: cursors cannot be written, trying again: {error}");
        }
        self.cursor_failing = result.is_err();
        self.shared.wake_failed_reads();
        self.fill();
    }

    /// Makes the spares that a steady flow then uses for ever. Not more: a spool that grows takes
    /// new files, because writing zeros into each would double what is written.
    fn fill(&mut self) {
        let shared = &self.shared;
        let Spares { count_max, bytes } = shared.config.spares();
        let room = shared.bounds.free_bytes().saturating_sub(bytes);
        let wanted = shared.config.fills_spares()
            && self.fills < FILLS_MAX.min(count_max)
            && room >= shared.config.free_bytes_min.as_u64()
            && !shared.is_failing()
            && !shared.own.has_spare();
        if wanted {
            self.fills += 1;
            if let Err(error) = shared.own.fill_spare(bytes, || !shared.keeper_stops()) {
                ::log::warn!("spool: a segment cannot be made ahead: {error}");
            }
        }
    }

    /// Says once that events are refused for want of room, and once that there is room again.
    fn tell_full(&mut self) {
        let full = self.shared.bounds.is_full();
        match (std::mem::replace(&mut self.full, full), full) {
            (false, true) => ::log::error!(
                "spool: full, spool.bytes_max is {}: events are refused",
                self.shared.bounds.bytes_max
            ),
            (true, false) => ::log::info!("spool: there is room again, events are accepted"),
            _ => {}
        }
    }

    /// Adopts what a process that ended in the meantime has left.
    fn adopt(&self) {
        let shared = &self.shared;
        let result = lane_ids(&*shared.fs, &shared.root).and_then(|ids| {
            let mut held = shared.lanes();
            held.extend_from_slice(&folded(shared));
            let mine = |id: &u64| held.iter().any(|lane| lane.id == *id);
            let ids: Vec<u64> = ids.into_iter().filter(|id| !mine(id)).collect();
            if ids.is_empty() {
                return Ok(());
            }
            let Some(_lock) = lock_spool(&*shared.fs, &shared.root)? else { return Ok(()) };
            let names = shared.names();
            let adopted = adopt_dead(&shared.fs, &shared.root, &ids, &names, &shared.quarantine);
            shared.take_in(adopted);
            Ok(())
        });
        if let Err(error) = result {
            ::log::warn!("spool: the lanes cannot be listed: {error}");
        }
    }

    /// Folds the totals of lanes that all upstreams are through with into the own lane.
    fn fold(&mut self) {
        let mut lanes = self.shared.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        lanes.retain(|lane| {
            let state = lane.state();
            if !state.is_done() {
                return true;
            }
            let mut own = self.shared.own.state();
            if own.absorbed.len() >= super::read::cursor::ABSORBED_MAX {
                return true;
            }
            for (mine, theirs) in own.accounts.iter_mut().zip(&state.accounts) {
                mine.carried.add(theirs.totals(state.end()));
            }
            own.absorbed.push(lane.key());
            own.dirty = true;
            ::log::info!("spool: lane {} is delivered and goes", lane.id);
            folded(&self.shared).push(Arc::clone(lane));
            false
        });
    }

    fn save(&mut self) -> io::Result<()> {
        for lane in self.shared.lanes() {
            if lane.state().dirty {
                lane.save_cursor()?;
            }
            let own = lane.id == self.shared.own.id;
            let low = self.shared.bounds.is_disk_low();
            lane.trim((own && !low).then(|| self.shared.config.spares()))?;
            if low {
                lane.drop_spares();
            }
        }
        self.remove_folded()
    }

    /// Removes folders whose totals are in both slots of the own cursor.
    fn remove_folded(&mut self) -> io::Result<()> {
        if self.shared.own.state().absorbed.is_empty() {
            return Ok(());
        }
        self.shared.own.save_cursor()?;
        self.shared.own.save_cursor()?;
        let absorbed = self.shared.own.state().absorbed.clone();
        for key in absorbed {
            self.remove(key)?;
            folded(&self.shared).retain(|lane| lane.key() != key);
        }
        self.shared.fs.sync_dir(&self.shared.root)?;
        let mut own = self.shared.own.state();
        own.absorbed.clear();
        own.dirty = true;
        Ok(())
    }

    /// Removes a folded lane's folder, if it is that lane's: a later one may have its number.
    fn remove(&self, key: LaneKey) -> io::Result<()> {
        let dir = lane_dir(&self.shared.root, key.0);
        let held = folded(&self.shared).iter().any(|lane| lane.key() == key);
        if !held && lane_key(&*self.shared.fs, &dir)? != Some(key) {
            // Gone, or gone but for the empty folder, or a later lane, whose folder is not empty.
            _ = self.shared.fs.remove_dir(&dir);
            return Ok(());
        }
        match remove_lane(&*self.shared.fs, &dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The last turn, when the committer is through.
    pub fn finish(shared: &Arc<SpoolState>) -> io::Result<()> {
        for lane in shared.lanes() {
            lane.save_cursor()?;
        }
        Ok(())
    }
}

/// What a lane's identity says; `None` where there is none to read.
fn lane_key(fs: &dyn Fs, dir: &Path) -> io::Result<Option<LaneKey>> {
    match fs.open(&dir.join(IDENTITY), Open::Read) {
        Ok(file) => Ok(header(&*file)?.map(|header| (header.lane, header.salt))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn folded(shared: &SpoolState) -> MutexGuard<'_, Vec<Arc<Lane>>> {
    shared.folded.lock().unwrap_or_else(PoisonError::into_inner)
}
