//! Maintenance: a thread that once a second does the work that can wait.
//!
//! It writes cursors, trims lanes, adopts and removes the lanes of processes that have ended,
//! measures the free space of the disk and the growth of the spool, and checks that the spool is
//! still at its path. If the disk did not let the start create the own lane, maintenance creates
//! it. It has a thread of its own because requests wait for the committer's. The failure of one
//! lane does not stop the work on the others: it is a fault, and is tried again at the next turn.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::fs::{Fs, Open, is_absent};
use super::held_back::HeldBack;
use super::lane::{Lane, Spares};
use super::lane_files::{IDENTITY, PORTALS, lane_dir, remove_lane};
use super::missing;
use super::read::cursor::{ABSORBED_MAX, LaneKey};
use super::recovery::adoption::{lane_ids, lock_spool};
use super::recovery::identity::header;
use super::state::SpoolState;
use crate::telemetry::faults::FaultKind;

/// The most spares of zeros that are made: one is used while the other waits. The third that a fast
/// flow uses in turn is a new file that was trimmed.
const FILLS_MAX: usize = 2;
/// The time between two turns of maintenance.
pub const TURN: Duration = Duration::from_secs(1);

/// The state of the maintenance thread.
pub struct Maintenance {
    state: Arc<SpoolState>,
    /// Whether the spool was full (`spool.bytes_max`) at the last turn.
    full: bool,
    /// The number of spares of zeros that were begun.
    fills: usize,
    held_back: HeldBack,
}

impl Maintenance {
    /// The maintenance of this spool.
    pub fn new(state: Arc<SpoolState>) -> Maintenance {
        Maintenance { state, full: false, fills: 0, held_back: HeldBack::default() }
    }

    /// Runs turns until the spool is closed.
    pub fn run(mut self) {
        while !self.state.wait_for_turn(TURN) {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.state.look_at_disk();
        self.tell_full();
        self.state.book.report_full();
        let own = self.state.own().cloned().or_else(|| self.begin());
        let own = own.filter(|own| self.check_place(own));
        if let Some(own) = &own {
            self.adopt();
            self.fold(own);
        }
        for lane in self.state.lanes() {
            self.save(&lane);
        }
        self.state.lanes().iter().for_each(|lane| self.remove_absorbed(lane));
        missing::report(&self.state.lanes(), &self.state.disk_faults);
        self.held_back.report(&self.state);
        if let Some(own) = &own {
            self.fill(own);
        }
        self.state.wake_failed_reads();
    }

    /// Tries again what the start could not do: to adopt lanes and to create the own lane. Events
    /// are refused until that succeeds. Events of earlier processes are delivered meanwhile, which
    /// makes room.
    fn begin(&self) -> Option<Arc<Lane>> {
        self.state.note_start(&self.state.begin());
        self.state.own().cloned()
    }

    /// Refuses events while a following process would not find the lane or its last segment. The
    /// committer accepts them again when the lane is back, or in a new segment. Returns whether
    /// both are at their paths.
    fn check_place(&self, own: &Lane) -> bool {
        let state = &self.state;
        let found = own.check_place().and_then(|()| own.check_last_segment());
        state.disk_faults.note(FaultKind::SpoolFolder, &subject(own.dir()), "finding", &found);
        if let Err(error) = &found {
            state.fail(error);
            state.parker.unpark();
        }
        found.is_ok()
    }

    /// Makes the spares that a steady flow then uses in turn. A spool that grows takes new files
    /// instead, because writing zeros into each would double the bytes that are written.
    fn fill(&mut self, own: &Lane) {
        let state = &self.state;
        let Spares { count_max, bytes } = state.config().spares();
        let room = state.bounds.free_bytes().saturating_sub(bytes);
        let wanted = state.config().fills_spares()
            && self.fills < FILLS_MAX.min(count_max)
            && room >= state.config().free_bytes_min.as_u64()
            && !state.is_failing()
            && !own.has_spare();
        if wanted {
            self.fills += 1;
            if let Err(error) = own.fill_spare(bytes, || !state.maintenance_stops()) {
                let dir = own.dir().display();
                ::log::warn!("spool: a spare segment cannot be made in {dir}: {error}");
            }
        }
    }

    /// Logs once that events are refused because the spool is full, and once that this is over.
    fn tell_full(&mut self) {
        let full = self.state.bounds.is_full();
        match (std::mem::replace(&mut self.full, full), full) {
            (false, true) => ::log::error!(
                "spool: full, spool.bytes_max is {} bytes: events are refused until upstreams \
                take some",
                self.state.bounds.bytes_max()
            ),
            (true, false) => ::log::info!("spool: there is room again, events are accepted"),
            _ => {}
        }
    }

    /// Adopts the lanes of processes that have ended since the last turn.
    fn adopt(&self) {
        let state = &self.state;
        let root = subject(&state.root);
        let ids = lane_ids(&*state.fs, &state.root);
        state.disk_faults.note(FaultKind::SpoolFolder, &root, "listing", &ids);
        let Ok(ids) = ids else { return };
        let is_listed = |at: &str| ids.iter().any(|id| subject(&lane_dir(&state.root, *id)) == at);
        state.disk_faults.retain(FaultKind::SpoolLane, is_listed);
        if state.adoptable(&ids).0.is_empty() {
            return;
        }
        let lock = lock_spool(&*state.fs, &state.root);
        state.disk_faults.note(FaultKind::SpoolFolder, &format!("{root}/lock"), "locking", &lock);
        if let Ok(Some(_lock)) = lock {
            state.adopt(&ids);
        }
    }

    /// Folds the totals of lanes that are delivered to all upstreams into the own lane.
    fn fold(&self, own: &Lane) {
        let lanes = self.state.lanes();
        if lanes.iter().any(|lane| lane.has_stale_fold()) {
            // The next write removes the stale fold. If a lane were folded before that write, its
            // counts might count twice.
            return;
        }
        // The cursor of a lane names the lanes that it has absorbed until they are removed.
        let is_done = |lane: &&Arc<Lane>| {
            let state = lane.state();
            state.is_done() && state.absorbed.is_empty()
        };
        for lane in lanes.iter().filter(is_done) {
            // Runs without the lock of all lanes, because it writes to disk.
            let has_room = own.state().absorbed.len() < ABSORBED_MAX;
            if has_room && self.fold_counts(own, lane) {
                self.absorb(own, lane);
                own.confirm_fold(lane.key());
            }
        }
    }

    /// Takes over the totals of a delivered lane. Its counts by portal are in the own lane's file.
    fn absorb(&self, own: &Lane, lane: &Arc<Lane>) {
        let mut lanes = self.state.lanes.lock();
        let (state, mut own) = (lane.state(), own.state());
        own.absorb(lane.key(), &state);
        ::log::info!("spool: lane {} is delivered and removed", lane.id);
        self.state.folded.lock().push(Arc::clone(lane));
        lanes.retain(|other| other.key() != lane.key());
    }

    /// Writes a lane's cursor if it has changed or its file is gone, and trims the lane.
    fn save(&self, lane: &Lane) {
        let state = &self.state;
        let dir = subject(lane.dir());
        let has_changed = lane.state().dirty;
        if has_changed || lane.has_lost_cursor() {
            state.disk_faults.note(
                FaultKind::SpoolCursor,
                &dir,
                "writing the cursor of",
                &lane.save_cursor(),
            );
        }
        self.save_counts(lane);
        let own = state.own().is_some_and(|own| own.id == lane.id);
        let low = state.bounds.is_disk_low();
        let trimmed = lane.trim((own && !low).then(|| state.config().spares()));
        state.disk_faults.note(FaultKind::SpoolFiles, &dir, "removing segments of", &trimmed);
        if low {
            lane.drop_spares();
        }
    }

    /// Writes the counts by portal of a lane if they have changed or their file is gone.
    fn save_counts(&self, lane: &Lane) {
        let saved = lane.save_counts(&self.state.book);
        self.note_counts(lane, &saved);
        if saved.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull) {
            // Removing segments makes room for the counts. Until these are written, a kill would
            // lose the counts of the removed segments, which the next start would report.
            lane.state().counted = u64::MAX;
        }
    }

    /// Adds the counts of a delivered lane to the own lane's file. Returns whether that succeeded.
    fn fold_counts(&self, own: &Lane, lane: &Lane) -> bool {
        let folded = own.fold_counts(lane, &self.state.book);
        self.note_counts(own, &folded);
        folded.is_ok()
    }

    fn note_counts(&self, lane: &Lane, saved: &io::Result<()>) {
        let path = subject(&lane.dir().join(PORTALS));
        self.state.disk_faults.note(FaultKind::PortalTotals, &path, "writing", saved);
    }

    /// Removes the folders of the lanes whose totals `lane` has taken over, once both slots of its
    /// cursor name them. The cursor names them until their removal is durable.
    fn remove_absorbed(&self, lane: &Lane) {
        let absorbed = lane.state().absorbed.clone();
        // If this lane is not at its path, folders with these names belong to another spool.
        if absorbed.is_empty() || lane.check_place().is_err() {
            return;
        }
        if lane.save_cursor().and_then(|()| lane.save_cursor()).is_err() {
            return;
        }
        let state = &self.state;
        let mut removed = Vec::new();
        for key in absorbed {
            let dir = lane_dir(&state.root, key.0);
            let result = self.remove(key, &dir);
            state.disk_faults.note(FaultKind::SpoolFiles, &subject(&dir), "removing", &result);
            if result.is_ok() {
                state.disk_faults.clear(FaultKind::SpoolCursor, &subject(&dir));
                state.disk_faults.clear(FaultKind::PortalTotals, &subject(&dir.join(PORTALS)));
                removed.push(key);
            }
        }
        let synced = state.fs.sync_dir(&state.root);
        state.disk_faults.note(FaultKind::SpoolFiles, &subject(&state.root), "syncing", &synced);
        if synced.is_ok() {
            state.folded.lock().retain(|folded| !removed.contains(&folded.key()));
            let mut changed = lane.state();
            changed.absorbed.retain(|key| !removed.contains(key));
            changed.dirty = true;
        }
    }

    /// Removes the folder `dir` if it is that of the lane `key`: a later lane may have the same
    /// number, and another spool may have taken the place of this one.
    fn remove(&self, key: LaneKey, dir: &Path) -> io::Result<()> {
        let fs = &*self.state.fs;
        let is_held = self.state.folded.lock().iter().any(|lane| lane.key() == key);
        let removed = match lane_key(fs, dir)? {
            Some(found) if found != key => return Ok(()),
            // The remains of a folder whose removal was interrupted.
            None if !is_held => fs.remove_dir(dir),
            _ => remove_lane(fs, dir),
        };
        // A call may report a folder as absent although it exists, for instance while a mount comes
        // back. If the cursor forgot the lane now, a later process would adopt it and count its
        // events again.
        let is_gone = is_absent(&removed) && !lane_ids(fs, &self.state.root)?.contains(&key.0);
        if is_gone { Ok(()) } else { removed }
    }

    /// Runs the last turn, after the committer has ended. Returns the first error, after it has
    /// tried every lane.
    pub fn finish(state: &Arc<SpoolState>) -> io::Result<()> {
        let save = |lane: Arc<Lane>| lane.save_cursor().and(lane.save_counts(&state.book));
        state.lanes().into_iter().map(save).fold(Ok(()), io::Result::and)
    }
}

/// The name of a folder in a fault.
fn subject(dir: &Path) -> String {
    dir.display().to_string()
}

/// The lane that an identity file names; `None` if there is no file or it is damaged.
fn lane_key(fs: &dyn Fs, dir: &Path) -> io::Result<Option<LaneKey>> {
    match fs.open(&dir.join(IDENTITY), Open::Read) {
        Ok(file) => Ok(header(&*file)?.map(|header| (header.lane, header.salt))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
