//! The committer: one thread that takes the staged records, writes them, makes them durable and
//! answers the requests that wait (SPEC 6).
//!
//! The records that are taken together go into one segment and are answered together. They stay in
//! memory until they are as durable as the mode demands, because a segment whose write or sync
//! failed is never written again. Its records are written a second time, into a new segment that
//! begins at the first of their numbers and thereby cuts the old one. If that fails, too, they are
//! refused (`power`), and later records get their numbers.
//!
//! In `interval`, answers do not wait for a sync. The syncer's thread syncs, and the records that
//! were written before the sync began are dropped from memory when it has succeeded.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::admission::GROUP_BYTES_MAX;
use super::counted::Counted;
use super::group::{Group, Taken};
use super::segment::Segment;
use super::syncer::Syncer;
use super::unsynced::{Unsynced, count};
use crate::plural::counted;
use crate::spool::config::{Durability, FIRST_SEGMENT_BYTES};
use crate::spool::format::{ChecksumSeed, SEGMENT_HEADER_BYTES};
use crate::spool::lane::Lane;
use crate::spool::state::SpoolState;

/// Pause between two attempts while the disk fails.
const RETRY: Duration = Duration::from_millis(250);
/// The factor by which a group lingers longer in `memory`, where no request waits for it and each
/// group costs a wake-up. With a greater factor, groups would be so large that writing one keeps a
/// core from answering requests.
const MEMORY_LINGERS: u32 = 2;
/// The unsynced bytes in `memory` after which the segment is synced, so that the kernel never has
/// much to write at a time.
const MEMORY_SYNC_BYTES: u64 = 2 << 20;
/// The largest buffer that is kept after a burst, in bytes.
const BUFFER_BYTES_KEPT: usize = 1 << 20;
/// The first part of the unsynced records, which a sync under way makes durable.
struct SyncInFlight {
    bytes: usize,
    events: u64,
}

/// The state of the committing thread.
pub struct Committer {
    state: Arc<SpoolState>,
    lane: Arc<Lane>,
    segment: Option<Segment>,
    /// Whether segments are written around the page cache.
    direct: bool,
    next_number: u64,
    /// The size of the next segment that is a new file.
    new_bytes: u64,
    unsynced: Unsynced,
    /// The counts of the commit that is under way.
    counted: Counted,
    /// The groups that are being answered. Stored here so that its memory is used again.
    claimed: Vec<(Duration, Arc<Group>)>,
    spares: Vec<Vec<u8>>,
    /// When the last sync began or, in `power`, ended.
    synced_at: Duration,
    /// Present only in `interval`.
    syncer: Option<Syncer>,
    /// Present while the syncer syncs the segment.
    sync_in_flight: Option<SyncInFlight>,
    /// Whether records were staged at the last visit.
    busy: bool,
}

impl Committer {
    /// A committer for the own lane, which has no segment yet. `syncer` is present only in
    /// `interval`.
    pub fn new(state: Arc<SpoolState>, lane: Arc<Lane>, syncer: Option<Syncer>) -> Committer {
        Committer {
            // The other modes answer before the disk has the events, so they write into the cache.
            direct: state.durability == Durability::Power,
            synced_at: state.clock.monotonic(),
            state,
            lane,
            segment: None,
            next_number: 1,
            new_bytes: 2 * FIRST_SEGMENT_BYTES,
            unsynced: Unsynced { base: 1, ..Unsynced::default() },
            counted: Counted::default(),
            claimed: Vec::new(),
            spares: Vec::new(),
            syncer,
            sync_in_flight: None,
            busy: false,
        }
    }

    /// Makes the first segment before the first event. Events are accepted when that has succeeded.
    pub fn prepare(&mut self) {
        // This counts as a commit, so that the watch refuses events if the disk does not answer.
        self.state.waiting.begin_commit(self.state.clock.monotonic());
        if self.state.config().fills_spares() {
            // After an error, the first segment is a new file.
            _ = self.lane.fill_spare(FIRST_SEGMENT_BYTES, || true);
        }
        match self.open_segment() {
            Ok(()) => self.state.recover(),
            Err(error) => self.state.fail(&error),
        }
        self.state.waiting.end_commit();
    }

    /// Runs until the spool is closed and every staged record has its answer.
    pub fn run(mut self) {
        loop {
            let closing = self.state.bounds.is_closed();
            if !closing {
                self.wait();
            }
            let gathered = self.gather();
            self.busy = !gathered.is_empty();
            let sync = closing || self.must_sync(!gathered.is_empty());
            let snapshots = self.sync_in_flight.is_some() || self.state.is_failing();
            if !gathered.is_empty() || sync || snapshots {
                self.commit(gathered, sync);
            }
            if closing && !self.state.has_staged() {
                break;
            }
        }
        if self.unsynced.answered_events > 0 {
            let events = counted(self.unsynced.answered_events, "answered event");
            ::log::error!("spool: {events} could not be written before the stop");
        }
        if let Some(segment) = &self.segment {
            segment.cut(segment.offset);
        }
    }

    /// Sleeps until there is work, then lingers for more events.
    ///
    /// It lingers even after a single event: 2 ms cost less than the sync itself, and a second
    /// event in the same group costs no sync of its own.
    fn wait(&self) {
        let state = &self.state;
        let failing = state.is_failing();
        let linger = self.linger();
        if self.busy && !failing {
            // The next event is expected soon, and need not wake this thread while it dozes.
            self.doze(self.sync_due().map_or(linger, |due| due.min(linger)));
            // A sync that ended during the doze must not wake this thread a second time.
            if state.has_staged() || self.sync_in_flight.is_some() {
                return;
            }
        }
        let timeout = if failing { Some(RETRY) } else { self.sync_due() };
        // While the disk fails, records that were staged before wait for the next attempt.
        state.parker.park(timeout, || state.bounds.is_closed() || (!failing && state.has_staged()));
        if !failing && let Some(first_at) = state.first_at() {
            self.doze((first_at + linger).saturating_sub(state.clock.monotonic()));
        }
    }

    /// The longest that a group waits for more events.
    fn linger(&self) -> Duration {
        let linger = Duration::from_millis(self.state.config().linger_ms);
        match self.state.durability {
            Durability::Power | Durability::Interval => linger,
            Durability::Memory => linger * MEMORY_LINGERS,
        }
    }

    /// The time until the next sync is due. `None` if all written records are synced or in a sync.
    fn sync_due(&self) -> Option<Duration> {
        let waits = self.unsynced.written > 0 && self.sync_in_flight.is_none();
        let due = self.synced_at + Duration::from_millis(self.state.config().sync_ms);
        waits.then(|| due.saturating_sub(self.state.clock.monotonic()))
    }

    /// Sleeps for `left`, or until the staged records must be written at once.
    fn doze(&self, left: Duration) {
        // Measured by the system's time, because the clock of a test may stand still.
        let until = Instant::now() + left;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let urgent = self.state.bounds.is_closed()
                || self.state.bounds.staged_bytes() >= GROUP_BYTES_MAX
                || self.state.flush_requested.load(SeqCst);
            if left.is_zero() || urgent {
                return;
            }
            std::thread::park_timeout(left);
        }
    }

    fn gather(&mut self) -> Vec<Taken> {
        // Reset before the shards are read, because a later request is for the next group.
        self.state.flush_requested.store(false, SeqCst);
        let mut gathered = Vec::new();
        let mut bytes = 0;
        for shard in &self.state.shards {
            let mut spare = self.spares.pop();
            if let Some(taken) = shard.take(&mut spare) {
                bytes += taken.bytes.len() as u64;
                gathered.push(taken);
            }
            self.spares.extend(spare);
            if bytes >= GROUP_BYTES_MAX {
                break;
            }
        }
        gathered
    }

    fn must_sync(&self, gathered: bool) -> bool {
        match self.state.durability {
            Durability::Power => gathered,
            Durability::Memory => false,
            Durability::Interval => {
                let due = self.synced_at + Duration::from_millis(self.state.config().sync_ms);
                let waiting = self.unsynced.events > 0 && self.sync_in_flight.is_none();
                waiting && self.state.clock.monotonic() >= due
            }
        }
    }

    fn commit(&mut self, gathered: Vec<Taken>, sync: bool) {
        self.state.waiting.begin_commit(self.state.clock.monotonic());
        for taken in gathered {
            self.unsynced.events += taken.events;
            self.state.waiting.push(taken.first_at, taken.group);
            self.counted.count(&taken.bytes, &self.state);
            let mut buffer = taken.bytes;
            if self.unsynced.bytes.is_empty() {
                // This is always so with one busy thread, and then no byte is copied.
                std::mem::swap(&mut self.unsynced.bytes, &mut buffer);
            } else {
                self.unsynced.bytes.extend_from_slice(&buffer);
            }
            buffer.clear();
            if buffer.capacity() <= BUFFER_BYTES_KEPT {
                self.spares.push(buffer);
            }
        }
        if self.state.durability == Durability::Memory {
            // Each event was answered when it was staged.
            self.set_answered();
        }
        let result = self.persist(sync).or_else(|error| {
            if self.state.waiting.has_expired() {
                return Err(error);
            }
            if !self.state.is_failing() {
                let lane = self.lane.id;
                ::log::warn!("spool: a segment of lane {lane} failed, trying a new one: {error}");
            }
            self.give_up_segment();
            self.persist(true)
        });
        match result {
            Ok(()) => self.state.recover(),
            Err(error) => {
                self.state.fail(&error);
                self.give_up_segment();
                self.refuse();
            }
        }
        self.state.waiting.end_commit();
    }

    /// Answers the requests that wait, because all records in memory are as durable as the mode
    /// demands. Fails if a successor would not find the segment, or if the deadline has passed.
    fn answer(&mut self) -> io::Result<()> {
        if let Some(segment) = &self.segment {
            self.lane.check_segment(segment.number, segment.id)?;
        }
        self.state.waiting.claim(&mut self.claimed)?;
        self.state.note_commit();
        self.publish();
        self.set_answered();
        Ok(())
    }

    /// Marks all records as answered, and answers the groups that were claimed.
    fn set_answered(&mut self) {
        if self.state.durability == Durability::Memory {
            // No request waits, so no deadline can have passed.
            _ = self.state.waiting.claim(&mut self.claimed);
        }
        self.unsynced.set_answered();
        let mut state = self.lane.state();
        state.accepted = self.unsynced.end();
        self.counted.add_to(&self.lane, &mut state, &self.state);
        drop(state);
        let now = self.state.clock.monotonic();
        for (first_at, group) in self.claimed.drain(..) {
            group.settle(Ok(()));
            if let Some(histogram) = &self.state.commit_seconds {
                histogram.observe(now.saturating_sub(first_at).as_secs_f64());
            }
        }
    }

    /// Writes the records that are not yet written and, with `sync`, syncs.
    fn persist(&mut self, sync: bool) -> io::Result<()> {
        if let Some(end) = self.syncer.as_ref().and_then(Syncer::try_end) {
            self.take_end(end)?;
        }
        if self.state.is_failing() {
            self.check_place()?;
        }
        let new = (self.unsynced.bytes.len() - self.unsynced.written) as u64;
        let full = self.segment.as_ref().is_some_and(|segment| {
            segment.offset > SEGMENT_HEADER_BYTES as u64 && segment.offset + new > segment.capacity
        });
        if full {
            self.close_segment()?;
        }
        match &mut self.segment {
            None => self.open_segment()?,
            Some(segment) if new > 0 => {
                self.unsynced.place(segment.seed);
                segment.write(&self.unsynced.bytes[self.unsynced.written..])?;
                self.unsynced.written = self.unsynced.bytes.len();
            }
            Some(_) => {}
        }
        match self.state.durability {
            Durability::Power => {}
            Durability::Interval => self.answer()?,
            Durability::Memory => {
                self.publish();
                self.forget(self.unsynced.bytes.len(), self.unsynced.events);
                if let Some(segment) = &mut self.segment {
                    segment.sync_beyond(MEMORY_SYNC_BYTES)?;
                }
            }
        }
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        if let (Some(syncer), Some(segment)) = (&self.syncer, &self.segment)
            && !self.state.bounds.is_closed()
        {
            syncer.begin(segment.file());
            let (bytes, events) = (self.unsynced.bytes.len(), self.unsynced.events);
            self.sync_in_flight = Some(SyncInFlight { bytes, events });
            self.synced_at = self.state.clock.monotonic();
            self.state.waiting.set_sync(Some(self.synced_at));
            return Ok(());
        }
        self.await_sync()?;
        if let Some(segment) = &mut self.segment {
            segment.sync()?;
        }
        self.synced_at = self.state.clock.monotonic();
        if self.state.durability == Durability::Power {
            self.answer()?;
        }
        self.forget(self.unsynced.bytes.len(), self.unsynced.events);
        Ok(())
    }

    /// Waits for the end of a sync that is under way. Linux reports a failed sync only once, so no
    /// other sync of the file may begin before it has ended.
    fn await_sync(&mut self) -> io::Result<()> {
        match (&self.syncer, &self.sync_in_flight) {
            (Some(syncer), Some(_)) => {
                let end = syncer.end();
                self.take_end(end)
            }
            _ => Ok(()),
        }
    }

    fn take_end(&mut self, end: io::Result<()>) -> io::Result<()> {
        let sync_in_flight = self.sync_in_flight.take();
        self.state.waiting.set_sync(None);
        end?;
        if let Some(SyncInFlight { bytes, events }) = sync_in_flight {
            self.forget(bytes, events);
        }
        Ok(())
    }

    /// Makes the written records readable.
    fn publish(&mut self) {
        let Some(segment) = &self.segment else { return };
        if segment.is_direct() {
            let records = &self.unsynced.bytes[..self.unsynced.written];
            let offset = segment.offset - records.len() as u64;
            self.lane.hot_tail.push(segment.number, offset, records);
        }
        let end = self.unsynced.base + self.unsynced.events;
        let mut state = self.lane.state();
        state.segment_index.publish(segment.offset, end);
        self.counted.add_to(&self.lane, &mut state, &self.state);
        self.state.bounds.set_unsynced_bytes(self.unsynced.written as u64);
        self.lane.publish_held(&state, &self.state.bounds);
        drop(state);
        self.state.wake_readers();
    }

    /// Drops the first records, which are durable, from memory.
    fn forget(&mut self, bytes: usize, events: u64) {
        let unsynced = &mut self.unsynced;
        unsynced.remove(bytes, events);
        if unsynced.bytes.is_empty() && unsynced.bytes.capacity() > BUFFER_BYTES_KEPT {
            unsynced.bytes = Vec::new();
        }
        self.state.bounds.set_unsynced_bytes(unsynced.written as u64);
        self.state.bounds.settle(bytes as u64);
    }

    /// Checks that a following process would find the lane and the segment at their paths.
    fn check_place(&self) -> io::Result<()> {
        self.lane.check_place()?;
        match &self.segment {
            Some(segment) => self.lane.check_segment(segment.number, segment.id),
            None => Ok(()),
        }
    }

    /// Ends a full segment. Only the last segment of a lane ever holds unsynced records.
    fn close_segment(&mut self) -> io::Result<()> {
        self.await_sync()?;
        if self.unsynced.written > 0 || self.state.durability == Durability::Memory {
            let Some(segment) = &mut self.segment else { return Ok(()) };
            segment.sync()?;
            self.synced_at = self.state.clock.monotonic();
            let written = self.unsynced.written;
            self.forget(written, count(&self.unsynced.bytes[..written]));
        }
        self.segment = None;
        Ok(())
    }

    /// Makes a segment that holds all records that are not yet durable.
    fn open_segment(&mut self) -> io::Result<()> {
        self.lane.check_place()?;
        let records = self.unsynced.bytes.len() as u64;
        let most = self.state.config().segment_bytes_used();
        let bytes = self.new_bytes.min(most).max(SEGMENT_HEADER_BYTES as u64 + records);
        // A number is used once, even if making its segment fails half way.
        let number = self.next_number;
        self.next_number += 1;
        self.unsynced.place(ChecksumSeed::new(self.lane.salt, number));
        let (base, records) = (self.unsynced.base, &self.unsynced.bytes);
        let segment = Segment::create(&self.lane, number, base, bytes, records, &mut self.direct)?;
        self.state.direct_writes.store(segment.is_direct(), Relaxed);
        self.unsynced.written = self.unsynced.bytes.len();
        if !segment.recycled {
            // The first new files are short, because maintenance now makes spares, which are
            // cheaper to write.
            self.new_bytes = self.new_bytes.saturating_mul(2);
            if self.state.config().fills_spares() {
                self.state.request_maintenance();
            }
        }
        // All its bytes are readable, since readers may have read these records in the one before.
        let mut state = self.lane.state();
        state.segment_index.push(number, base, segment.recycled, segment.offset);
        // The cursor must be written: it holds the number up to which foreign records are counted.
        state.dirty = true;
        drop(state);
        self.segment = Some(segment);
        Ok(())
    }

    /// Cuts the segment after the records that are certainly durable, and prepares the others for
    /// another segment.
    fn give_up_segment(&mut self) {
        // The result of the sync does not matter, because all its records are written again.
        _ = self.await_sync();
        let unsynced = &mut self.unsynced;
        let written = unsynced.written;
        unsynced.unplace();
        // Records that were answered after `write` stay in the old segment until they are in a new
        // one. If the process is killed before, the old segment is the only one that holds them.
        let kept = written.min(unsynced.answered);
        let end = unsynced.base + count(&unsynced.bytes[..kept]);
        if let Some(segment) = self.segment.take() {
            let good = segment.offset - (written - kept) as u64;
            // The index first, because readers must not find the file shorter than its span.
            let mut state = self.lane.state();
            state.segment_index.publish(good, end);
            self.state.bounds.set_unsynced_bytes(kept as u64);
            self.lane.publish_held(&state, &self.state.bounds);
            drop(state);
            segment.cut(good);
        }
    }

    /// Refuses the events that were not answered.
    fn refuse(&mut self) {
        let refused = self.unsynced.drop_unanswered();
        self.counted.clear();
        self.state.bounds.settle(refused as u64);
        self.state.waiting.refuse();
    }
}
