//! The lanes of a process: its own, and those of ended processes that it delivers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::fs::{File, create_dir_durable, is_absent};
use super::lane::Lane;
use super::metering::counts::Tallies;
use super::metering::living::Found;
use super::missing;
use super::read::cursor::LaneKey;
use super::recovery::adoption::{Adoptions, SPOOL_LOCK, lane_ids, lock_spool};
use super::recovery::living::Living;
use super::removed;
use super::state::SpoolState;
use crate::plural::counted;

/// The time between two looks of the committer for the own lane, if the start could create none.
const OWN_LANE_POLL: Duration = Duration::from_millis(50);

impl SpoolState {
    /// Creates the folder, adopts the lanes of processes that have ended, and creates the own lane.
    /// After an error it can be called again, and the adopted lanes are delivered meanwhile.
    ///
    /// # Errors
    ///
    /// The errors of the file system; `WouldBlock` while another process creates or adopts lanes.
    pub fn begin(&self) -> io::Result<()> {
        let locked = self
            .lock_folder()
            .inspect_err(|error| self.adopter.refuse(&self.waiting_lanes(), error))?;
        let Some(_lock) = locked else {
            let what = "another process creates or adopts lanes there";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
        };
        let ids = lane_ids(&*self.fs, &self.root)?;
        self.adopt(&ids);
        self.make_own(&ids)
    }

    /// Creates the folder and takes its lock. `None` while another process has it.
    fn lock_folder(&self) -> io::Result<Option<Arc<dyn File>>> {
        let lock = || {
            create_dir_durable(&*self.fs, &self.root)?;
            lock_spool(&*self.fs, &self.root)
        };
        let first = lock();
        if !is_absent(&first) {
            return first;
        }
        // A folder that was just removed is created now. A file system that makes no files, such as
        // that of `/proc`, gives the same error again.
        let again = lock();
        // If the name of the lock is listed, it is a symbolic link to nothing. An operator can
        // remove it while this process runs.
        let has_lock = || {
            self.fs
                .list(&self.root)
                .is_ok_and(|entries| entries.iter().any(|entry| entry.name == SPOOL_LOCK))
        };
        if is_absent(&again) && !has_lock() {
            let what = "the file system makes no files there";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        }
        again
    }

    /// Adopts those of the lanes `ids` whose processes have ended. The caller holds the lock of the
    /// folder.
    pub fn adopt(&self, ids: &[u64]) {
        let (ids, room) = self.adoptable(ids);
        if !ids.is_empty() {
            let living = self.living.lock();
            let seen = living.iter().filter_map(|lane| Some((lane.key, lane.seen.clone()?)));
            let seen = seen.collect();
            drop(living);
            self.take_in(&ids, self.adopter.adopt(&ids, room, &seen));
        }
    }

    /// The lanes in the folder that this process has not taken over. Empty if the folder cannot be
    /// listed.
    fn waiting_lanes(&self) -> Vec<u64> {
        let ids = lane_ids(&*self.fs, &self.root).unwrap_or_default();
        self.adoptable(&ids).0
    }

    /// Creates the own lane, with a number above those of all others. The caller holds the lock of
    /// the folder.
    fn make_own(&self, ids: &[u64]) -> io::Result<()> {
        // The number is also above those of the removed lanes that other lanes mention, so that a
        // number in the log means one lane.
        let newest = ids.iter().copied().fold(self.newest_lane.load(Relaxed), u64::max);
        let names = &self.adopter.upstreams;
        // If there are other lanes, they say from when the counts are complete.
        let since_ms = if newest == 0 { self.book.now_ms() } else { 0 };
        let (fs, id) = (&self.fs, newest + 1);
        let own = Arc::new(Lane::create(fs, &self.root, id, rand::random(), names, since_ms)?);
        own.take_in(&self.book);
        self.book.set_own(id);
        self.lanes.lock().push(Arc::clone(&own));
        _ = self.own.set(own);
        Ok(())
    }

    /// The own lane of this process. `None` until the disk lets it be created.
    pub fn own(&self) -> Option<&Arc<Lane>> {
        self.own.get()
    }

    /// Waits for the own lane. `None` if the spool is closed before.
    pub fn wait_for_own(&self) -> Option<Arc<Lane>> {
        while self.own().is_none() && !self.bounds.is_closed() {
            std::thread::park_timeout(OWN_LANE_POLL);
        }
        self.own().cloned()
    }

    /// Adds the lanes `found` among those that were tried. A lane whose totals another lane has is
    /// neither counted nor read, and only removed: its process ended between these two steps.
    fn take_in(&self, tried: &[u64], found: Adoptions) {
        let mut lanes = self.lanes.lock();
        let adopted = found.adopted.iter().map(|lane| lane.key());
        let taken: Vec<LaneKey> = adopted.chain(found.unheld.iter().map(|lane| lane.key)).collect();
        let mut absorbed = found.absorbed;
        let mentioned = absorbed.iter().map(|(id, _)| *id);
        self.newest_lane.fetch_max(mentioned.max().unwrap_or(0), Relaxed);
        for lane in lanes.iter() {
            absorbed.extend_from_slice(&lane.state().absorbed);
        }
        let is_absorbed = |lane: &Arc<Lane>| absorbed.contains(&lane.key());
        for lane in found.adopted {
            let state = lane.state();
            let events = state.segment_index.end().saturating_sub(state.low());
            lane.publish_held(&state, &self.bounds);
            drop(state);
            if !is_absorbed(&lane) {
                let events = counted(events, "event");
                ::log::info!("spool: lane {} adopted, {events} to deliver", lane.id);
                let losses = std::mem::take(&mut lane.state().losses);
                losses.iter().for_each(|loss| self.disk_faults.report(loss));
                lane.take_in(&self.book);
            }
            lanes.push(lane);
        }
        lanes.sort_by_key(|lane| lane.id);
        let mut folded = self.folded.lock();
        for lane in lanes.extract_if(.., |lane| is_absorbed(lane)) {
            lane.withdraw_held(&self.bounds);
            folded.push(lane);
        }
        let is_taken = |id: u64| taken.iter().any(|key| key.0 == id);
        self.predecessors.note(&found.of_other_processes, is_taken);
        self.note_living(found.living, |key| taken.contains(&key) || absorbed.contains(&key));
        let mut unheld = self.unheld.lock();
        for lane in unheld.extract_if(.., |lane| tried.contains(&lane.key.0)) {
            self.bounds.add_held_bytes(lane.held_bytes.wrapping_neg());
        }
        for lane in found.unheld.into_iter().filter(|lane| !absorbed.contains(&lane.key)) {
            self.bounds.add_held_bytes(lane.held_bytes);
            unheld.push(lane);
        }
        unheld.sort_by_key(|lane| lane.key);
        removed::report(&lanes, &unheld, self.upstreams.len(), &self.faults);
        drop((lanes, folded, unheld));
        missing::report(&self.lanes(), &self.disk_faults);
        self.wake_readers();
    }

    /// Replaces the totals of lanes whose processes live by those that were read now. The totals of
    /// a lane that could not be read stay; those of a lane that `is_counted` already do not.
    fn note_living(&self, read: Vec<Living>, is_counted: impl Fn(LaneKey) -> bool) {
        let mut living = self.living.lock();
        for lane in read.into_iter().filter(|lane| !is_counted(lane.key)) {
            let since_ms = lane.seen.as_ref().map_or(0, |seen| seen.since_ms);
            self.book.set_living(lane.key.0, &lane.portals, since_ms);
            living.retain(|before| before.key.0 != lane.key.0);
            living.push(Living { portals: Found::Further(Tallies::default()), ..lane });
        }
        living.retain(|lane| !is_counted(lane.key));
        self.book.retain_living(|id| living.iter().any(|lane| lane.key.0 == id));
    }

    /// The lanes among `ids` that may be adopted now, and the number of them that may be held.
    pub fn adoptable(&self, ids: &[u64]) -> (Vec<u64>, usize) {
        let lanes = self.lanes.lock();
        let folded = self.folded.lock();
        let mut unheld = self.unheld.lock();
        // Another process has adopted, delivered and removed these lanes.
        for lane in unheld.extract_if(.., |lane| !ids.contains(&lane.key.0)) {
            self.bounds.add_held_bytes(lane.held_bytes.wrapping_neg());
        }
        let mut living = self.living.lock();
        living.retain(|lane| ids.contains(&lane.key.0));
        self.book.retain_living(|id| living.iter().any(|lane| lane.key.0 == id));
        drop(living);
        self.predecessors.retain(ids);
        // The own lane does not count as adopted.
        let held = lanes.len() - usize::from(self.own().is_some()) + folded.len();
        let room = self.adopter.held_max().saturating_sub(held);
        let waits = |id: &u64| unheld.iter().skip(room).any(|lane| lane.key.0 == *id);
        let is_held = |id: &u64| lanes.iter().chain(folded.iter()).any(|lane| lane.id == *id);
        (ids.iter().copied().filter(|id| !is_held(id) && !waits(id)).collect(), room)
    }
}
