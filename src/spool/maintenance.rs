//! Maintenance: one thread that runs once a second the work that can wait.
//!
//! Cursors, trimming, the lanes of processes that are gone, the free space of the disk, the
//! growth rate. Not in the committer's thread: requests wait for it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::fs::{Fs, Open};
use super::lane::{IDENTITY, Lane, Spares, lane_dir, remove_lane};
use super::read::cursor::{ABSORBED_MAX, LaneKey};
use super::recovery::adoption::{adopt_dead, lane_ids, lock_spool};
use super::recovery::recover::header;
use super::state::SpoolState;

/// Spares of zeros that are made, at most: one is used while the other waits. The third that goes
/// around in a swift flow is a new file that has been trimmed.
const FILLS_MAX: usize = 2;
/// How often maintenance runs.
pub const TURN: Duration = Duration::from_secs(1);
/// The state of the keeping thread.
pub struct Maintenance {
    state: Arc<SpoolState>,
    cursor_failing: bool,
    /// `spool.bytes_max` was reached at the last turn.
    full: bool,
    /// How often a spare of zeros was begun.
    fills: usize,
}

impl Maintenance {
    pub fn new(state: Arc<SpoolState>) -> Maintenance {
        Maintenance { state, cursor_failing: false, full: false, fills: 0 }
    }

    /// Turns until the spool is closed.
    pub fn run(mut self) {
        while !self.state.wait_for_turn(TURN) {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.state.look_at_disk();
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
        self.state.wake_failed_reads();
        self.fill();
    }

    /// Makes the spares that a steady flow then uses for ever. Not more: a spool that grows takes
    /// new files, because writing zeros into each would double what is written.
    fn fill(&mut self) {
        let state = &self.state;
        let Spares { count_max, bytes } = state.config.spares();
        let room = state.bounds.free_bytes().saturating_sub(bytes);
        let wanted = state.config.fills_spares()
            && self.fills < FILLS_MAX.min(count_max)
            && room >= state.config.free_bytes_min.as_u64()
            && !state.is_failing()
            && !state.own.has_spare();
        if wanted {
            self.fills += 1;
            if let Err(error) = state.own.fill_spare(bytes, || !state.maintenance_stops()) {
                ::log::warn!("spool: a segment cannot be made ahead: {error}");
            }
        }
    }

    /// Says once that events are refused for want of room, and once that there is room again.
    fn tell_full(&mut self) {
        let full = self.state.bounds.is_full();
        match (std::mem::replace(&mut self.full, full), full) {
            (false, true) => ::log::error!(
                "spool: full, spool.bytes_max is {}: events are refused",
                self.state.bounds.bytes_max
            ),
            (true, false) => ::log::info!("spool: there is room again, events are accepted"),
            _ => {}
        }
    }

    /// Adopts what a process that ended in the meantime has left.
    fn adopt(&self) {
        let state = &self.state;
        let result = lane_ids(&*state.fs, &state.root).and_then(|ids| {
            let mut held = state.lanes();
            held.extend_from_slice(&folded(state));
            let mine = |id: &u64| held.iter().any(|lane| lane.id == *id);
            let ids: Vec<u64> = ids.into_iter().filter(|id| !mine(id)).collect();
            if ids.is_empty() {
                return Ok(());
            }
            let Some(_lock) = lock_spool(&*state.fs, &state.root)? else { return Ok(()) };
            let names = state.names();
            let adopted = adopt_dead(&state.fs, &state.root, &ids, &names, &state.quarantine);
            state.take_in(adopted);
            Ok(())
        });
        if let Err(error) = result {
            ::log::warn!("spool: the lanes cannot be listed: {error}");
        }
    }

    /// Folds the totals of lanes that all upstreams are through with into the own lane.
    fn fold(&mut self) {
        let mut lanes = self.state.lanes.lock();
        lanes.retain(|lane| {
            let state = lane.state();
            if !state.is_done() {
                return true;
            }
            let mut own = self.state.own.state();
            if own.absorbed.len() >= ABSORBED_MAX {
                return true;
            }
            for (mine, theirs) in own.positions.iter_mut().zip(&state.positions) {
                mine.carried.add(theirs.totals(state.end()));
            }
            own.absorbed.push(lane.key());
            own.dirty = true;
            ::log::info!("spool: lane {} is delivered and goes", lane.id);
            folded(&self.state).push(Arc::clone(lane));
            false
        });
    }

    fn save(&mut self) -> io::Result<()> {
        for lane in self.state.lanes() {
            if lane.state().dirty {
                lane.save_cursor()?;
            }
            let own = lane.id == self.state.own.id;
            let low = self.state.bounds.is_disk_low();
            lane.trim((own && !low).then(|| self.state.config.spares()))?;
            if low {
                lane.drop_spares();
            }
        }
        self.remove_folded()
    }

    /// Removes folders whose totals are in both slots of the own cursor.
    fn remove_folded(&mut self) -> io::Result<()> {
        if self.state.own.state().absorbed.is_empty() {
            return Ok(());
        }
        self.state.own.save_cursor()?;
        self.state.own.save_cursor()?;
        let absorbed = self.state.own.state().absorbed.clone();
        for key in absorbed {
            self.remove(key)?;
            folded(&self.state).retain(|lane| lane.key() != key);
        }
        self.state.fs.sync_dir(&self.state.root)?;
        let mut own = self.state.own.state();
        own.absorbed.clear();
        own.dirty = true;
        Ok(())
    }

    /// Removes a folded lane's folder, if it is that lane's: a later one may have its number.
    fn remove(&self, key: LaneKey) -> io::Result<()> {
        let dir = lane_dir(&self.state.root, key.0);
        let held = folded(&self.state).iter().any(|lane| lane.key() == key);
        if !held && lane_key(&*self.state.fs, &dir)? != Some(key) {
            // Gone, or gone but for the empty folder, or a later lane, whose folder is not empty.
            _ = self.state.fs.remove_dir(&dir);
            return Ok(());
        }
        match remove_lane(&*self.state.fs, &dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// The last turn, when the committer is through.
    pub fn finish(state: &Arc<SpoolState>) -> io::Result<()> {
        for lane in state.lanes() {
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

fn folded(state: &SpoolState) -> MutexGuard<'_, Vec<Arc<Lane>>> {
    state.folded.lock()
}
