//! Reads the records for one upstream, and takes its acknowledgements.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::counts::Ack;
use super::scanner::{Scanner, Step};
use crate::plural::counted;
use crate::spool::fs::File;
use crate::spool::lane::Lane;
use crate::spool::metering::table::OTHER;
use crate::spool::missing;
use crate::spool::predecessors::PredecessorWait;
use crate::spool::record_id::RecordId;
use crate::spool::recovery::count_foreign::{each_routed, stretches};
use crate::spool::recovery::returned::find_missing;
use crate::spool::segment_index::{Place, View};
use crate::spool::state::SpoolState;
use crate::spool::unreadable::{Unread, Unreadable};

/// A record, which the caller acknowledges by its id.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The identity of the record.
    pub record_id: RecordId,
    /// The bytes that were appended. They are a slice of the block that was read, which stays in
    /// memory until the slice is dropped.
    pub payload: Bytes,
}

/// The most bytes of foreign records that one read passes over before it yields to other tasks.
const PASSED_BYTES_MAX: usize = 4 << 20;

/// Reads the records that are meant for one upstream: the oldest lane first, and each lane in
/// order.
pub struct Reader {
    state: Arc<SpoolState>,
    upstream: usize,
    scanners: HashMap<u64, (Scanner, Arc<dyn File>)>,
    unreadable: Unreadable,
    /// `None`: the upstream keeps no order.
    predecessor_wait: Option<PredecessorWait>,
    /// The bytes of foreign records that the current read has passed over.
    passed_bytes: usize,
}

/// The outcome of one pass over a segment.
enum ReadPass {
    /// Another pass over the same lane follows.
    More,
    /// The lane has no further record to read now.
    Enough,
}

impl Reader {
    pub(crate) fn new(state: Arc<SpoolState>, upstream: usize) -> Reader {
        let name = &state.upstreams[upstream].name;
        let limit = Arc::clone(&state.unreadable_seconds_max);
        let unreadable = Unreadable::new(Arc::clone(&state.disk_faults), name, limit);
        Reader {
            state,
            upstream,
            scanners: HashMap::new(),
            unreadable,
            predecessor_wait: None,
            passed_bytes: 0,
        }
    }

    /// Makes this reader read no lane while an older one belongs to another process, until at most
    /// [`PREDECESSOR_SECONDS_MAX`] after the start.
    ///
    /// [`PREDECESSOR_SECONDS_MAX`]: crate::spool::PREDECESSOR_SECONDS_MAX
    pub fn keep_order(&mut self) {
        let name = &self.state.upstreams[self.upstream].name;
        self.predecessor_wait = Some(PredecessorWait::new(name, self.upstream));
    }

    /// Whether events wait for an older process to end. Reading is tried again each second.
    pub fn waits_for_predecessor(&self) -> bool {
        self.predecessor_wait.as_ref().is_some_and(PredecessorWait::waits)
    }

    /// Waits until at least one record is readable, and returns up to `events_max` records of up to
    /// `bytes_max` bytes in all, or one larger record.
    ///
    /// A record that was read and not acknowledged is not returned again before a restart. With
    /// [`RUNS_MAX`] runs of acknowledged records between others, this waits for acknowledgements.
    /// The future may be dropped while it waits: no record is lost.
    ///
    /// [`RUNS_MAX`]: super::ledger::RUNS_MAX
    pub async fn read(&mut self, events_max: usize, bytes_max: usize) -> Vec<Entry> {
        let state = Arc::clone(&self.state);
        loop {
            let entries = self.try_read(events_max, bytes_max);
            if !entries.is_empty() {
                return entries;
            }
            if self.passed_bytes >= PASSED_BYTES_MAX {
                tokio::task::yield_now().await;
                continue;
            }
            // A wake-up between the read and this wait has left a permit, so it is not missed.
            state.upstreams[self.upstream].readable.notified().await;
        }
    }

    /// The records that are readable now, perhaps none. Reads from disk, mostly from the page
    /// cache.
    pub fn try_read(&mut self, events_max: usize, bytes_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let predecessors = &self.state.predecessors;
        let older = self.predecessor_wait.as_mut().and_then(|wait| wait.begin(predecessors));
        let lanes = self.state.lanes();
        self.scanners.retain(|id, _| lanes.iter().any(|lane| lane.id == *id));
        self.unreadable.retain(&lanes);
        let mut bytes = 0;
        self.passed_bytes = 0;
        for lane in lanes {
            if older.is_some_and(|older| self.must_wait(&lane, older)) {
                break;
            }
            loop {
                match self.read_pass(&lane, events_max, bytes_max, &mut bytes, &mut entries) {
                    Ok(pass) => {
                        self.unreadable.is_over(lane.id);
                        if matches!(pass, ReadPass::Enough) {
                            break;
                        }
                    }
                    Err(unread) => {
                        self.read_failed(&lane, unread);
                        break;
                    }
                }
            }
            let is_over = entries.len() >= events_max || bytes >= bytes_max;
            if is_over || self.passed_bytes >= PASSED_BYTES_MAX || self.must_end_first(&lane) {
                break;
            }
        }
        entries
    }

    /// Whether the last read failed. The read is tried again each second.
    pub fn is_failing(&self) -> bool {
        self.unreadable.is_waiting()
    }

    /// A handle that acknowledges the records of this reader.
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger { state: Arc::clone(&self.state), upstream: self.upstream }
    }

    /// Whether this lane waits for the lane `older`, which belongs to another process.
    fn must_wait(&mut self, lane: &Lane, older: u64) -> bool {
        let (now, until) = (self.state.clock.monotonic(), self.state.predecessors.until);
        let Some(wait) = &mut self.predecessor_wait else { return false };
        let must_wait = wait.must_wait(lane, older, until, now);
        if must_wait {
            // Maintenance wakes this reader at its next turn.
            self.state.retry_reads();
        }
        must_wait
    }

    /// Whether later lanes must wait because too many separate events of this one are stuck.
    fn must_end_first(&self, lane: &Lane) -> bool {
        self.predecessor_wait.is_some() && !lane.state().positions[self.upstream].has_room()
    }

    fn read_pass(
        &mut self,
        lane: &Lane,
        events_max: usize,
        bytes_max: usize,
        bytes: &mut usize,
        entries: &mut Vec<Entry>,
    ) -> Result<ReadPass, Unread> {
        let (place, next) = {
            let state = lane.state();
            let position = &state.positions[self.upstream];
            let next = position.next();
            (state.segment_index.place(next.start).filter(|_| position.has_room()), next)
        };
        let view = match place {
            None => return Ok(ReadPass::Enough),
            Some(Place::Missing { number }) => return self.look_for_missing(lane, number),
            Some(Place::Lost { until }) => return Ok(self.lose(lane, until)),
            Some(Place::Segment(view)) => view,
        };
        let number = view.span.number;
        self.open_scanner(lane, &view)?;
        let name = &self.state.upstreams[self.upstream].name;
        let routing = self.state.routing;
        let Some((scanner, file)) = self.scanners.get_mut(&lane.id) else {
            return Ok(ReadPass::Enough);
        };
        let before = entries.len();
        let mut foreign = SeqRuns::default();
        let step = loop {
            let is_over = entries.len() >= events_max || *bytes >= bytes_max;
            if is_over || self.passed_bytes >= PASSED_BYTES_MAX {
                break Ok(None);
            }
            if scanner.seq >= next.end {
                break Ok(Some(Step::End));
            }
            match scanner.step(&**file, view.span.bytes, view.limit) {
                Ok(Step::Record { seq, .. }) if seq < next.start => {}
                Ok(Step::Record { seq, payload }) if routing.is_foreign(&payload, name) => {
                    self.passed_bytes += payload.len();
                    foreign.push(seq);
                }
                Ok(Step::Record { payload, .. })
                    if !entries.is_empty() && *bytes + payload.len() > bytes_max =>
                {
                    // The record does not fit, so the next read begins with it.
                    scanner.step_back(payload.len() as u64);
                    *bytes = bytes_max;
                }
                Ok(Step::Record { seq, payload }) => {
                    *bytes += payload.len();
                    let record_id = RecordId { lane: lane.id, seq, portal: OTHER };
                    entries.push(Entry { record_id, payload });
                }
                other => break other.map(Some),
            }
        };
        let (file, offset) = (Arc::clone(file), scanner.offset);
        self.hand_out(lane, &mut entries[before..], foreign);
        Ok(match step.map_err(|error| Unread::Read { number, error })? {
            None | Some(Step::Record { .. }) => ReadPass::Enough,
            Some(Step::End) => ReadPass::More,
            Some(Step::Gap { seqs, bytes }) => self.damaged(lane, view, &*file, bytes, seqs.end),
            Some(Step::Tail) => return self.tail(lane, view, &*file, offset),
        })
    }

    /// Opens a scanner for this segment, unless the lane has one already.
    fn open_scanner(&mut self, lane: &Lane, view: &View) -> Result<(), Unread> {
        let number = view.span.number;
        if self.scanners.get(&lane.id).is_none_or(|(scanner, _)| scanner.number != number) {
            let file = lane.hot_tail.over(number, self.unreadable.open(lane, number)?);
            let scanner = Scanner::new(number, lane.salt, view.span.base);
            self.scanners.insert(lane.id, (scanner, file));
        }
        Ok(())
    }

    /// Marks the next records as handed out or, if they are foreign, as passed over.
    fn hand_out(&self, lane: &Lane, entries: &mut [Entry], foreign: SeqRuns) {
        let (events, mut numbers) = (entries.len(), self.state.book.numbering());
        for entry in entries {
            entry.record_id.portal = numbers.number(&entry.payload).0;
        }
        let mut state = lane.state();
        let position = &mut state.positions[self.upstream];
        position.hand_out(events + foreign.events);
        if foreign.events == 0 {
            return;
        }
        foreign.runs.into_iter().for_each(|seqs| position.pass_over(seqs));
        let has_moved = position.advance();
        state.dirty = true;
        if has_moved {
            lane.publish_held(&state, &self.state.bounds);
        }
    }

    /// Handles a segment that ends before its last record: the others are damaged, or in a segment
    /// that is missing.
    fn tail(
        &mut self,
        lane: &Lane,
        view: View,
        file: &dyn File,
        offset: u64,
    ) -> Result<ReadPass, Unread> {
        if let Some(number) = view.missing_behind {
            // This holds even if this segment is damaged at its end: only the missing segment tells
            // how many of the records were in this one.
            return self.look_for_missing(lane, number);
        }
        Ok(self.damaged(lane, view, file, offset..view.span.bytes, view.limit))
    }

    /// Handles a damaged stretch, unless the segment was cut while it was read.
    fn damaged(
        &mut self,
        lane: &Lane,
        view: View,
        file: &dyn File,
        bytes: Range<u64>,
        seq: u64,
    ) -> ReadPass {
        let place = {
            let state = lane.state();
            state.segment_index.place(state.positions[self.upstream].next().start)
        };
        if !matches!(place, Some(Place::Segment(now)) if now.covers(&view)) {
            self.scanners.remove(&lane.id);
            return ReadPass::More;
        }
        if !bytes.is_empty() {
            self.state.quarantine.keep(lane.id, view.span.number, file, bytes);
        }
        self.lose(lane, seq)
    }

    /// Counts the next records before `seq` as lost.
    fn lose(&mut self, lane: &Lane, seq: u64) -> ReadPass {
        let foreign = self.lost_foreign(lane, seq);
        let mut state = lane.state();
        let position = &mut state.positions[self.upstream];
        let lost_before = position.totals(0).lost;
        position.lose_to(seq);
        position.foreign -= foreign.min(position.foreign);
        let lost = position.totals(0).lost - lost_before;
        if lost == 0 {
            return ReadPass::More;
        }
        state.dirty = true;
        lane.publish_held(&state, &self.state.bounds);
        drop(state);
        if foreign > 0 {
            // The ack file does not hold the count of foreign records, so the cursor is written.
            // After an error, `accepted` may be inexact if the process is killed at this moment.
            _ = lane.save_cursor();
        }
        ::log::error!(
            "spool: {} of lane {} lost to damage before number {seq}, for upstream {:?}",
            counted(lost, "event"),
            lane.id,
            self.state.upstreams[self.upstream].name
        );
        ReadPass::More
    }

    /// The number of foreign records among those that are lost before `seq`: those that are
    /// counted, were not passed over, and are not after `seq`.
    fn lost_foreign(&self, lane: &Lane, seq: u64) -> u64 {
        let state = lane.state();
        let position = state.positions[self.upstream].clone();
        let stretches = stretches(&state.segment_index, seq);
        drop(state);
        let unread = position.foreign.saturating_sub(position.passed_over());
        if unread == 0 {
            return 0;
        }
        let (mut ahead, routing) = (0, &self.state.routing);
        each_routed(
            &**lane.fs(),
            lane.dir(),
            lane.salt,
            &stretches,
            seq,
            routing,
            |seq, record| {
                let is_foreign = !(routing.names)(record, &position.name);
                ahead += u64::from(is_foreign && !position.has_ended(seq));
            },
        );
        unread.saturating_sub(ahead)
    }

    /// Checks whether missing segments have come back. They do not count as lost, because an
    /// operator may have moved them away.
    fn look_for_missing(&mut self, lane: &Lane, number: u64) -> Result<ReadPass, Unread> {
        match find_missing(lane, &self.state) {
            Ok(true) => {
                missing::report(&self.state.lanes(), &self.state.disk_faults);
                self.scanners.remove(&lane.id);
                Ok(ReadPass::More)
            }
            Ok(false) => Err(Unread::Missing { number }),
            Err(error) => Err(Unread::Open { number, error }),
        }
    }

    fn read_failed(&mut self, lane: &Lane, unread: Unread) {
        if let Unread::Missing { number } = unread {
            lane.state().vanished.insert(number);
            missing::report(&self.state.lanes(), &self.state.disk_faults);
        }
        self.unreadable.wait_for(lane, unread, !self.state.is_failing());
        self.scanners.remove(&lane.id);
        // Maintenance wakes this reader at its next turn.
        self.state.retry_reads();
    }
}

/// Rising sequence numbers, collected in runs.
#[derive(Default)]
struct SeqRuns {
    runs: Vec<Range<u64>>,
    events: usize,
}

impl SeqRuns {
    fn push(&mut self, seq: u64) {
        self.events += 1;
        match self.runs.last_mut() {
            Some(last) if last.end == seq => last.end += 1,
            _ => self.runs.push(seq..seq + 1),
        }
    }
}

/// Acknowledges records, from any thread and in any order. Cheap to clone.
#[derive(Clone)]
pub struct Acknowledger {
    state: Arc<SpoolState>,
    upstream: usize,
}

impl Acknowledger {
    /// Acknowledges these records. They are not read again, even if the process is killed after
    /// this call, or if the power fails more than a second later. A record that was not handed out,
    /// or is acknowledged already, is ignored.
    pub fn acknowledge(&self, record_ids: &[RecordId], ack: Ack) {
        let lanes = self.state.lanes();
        for ids in record_ids.chunk_by(|id, next| id.lane == next.lane) {
            let Some(lane) = lanes.iter().find(|lane| lane.id == ids[0].lane) else { continue };
            let settled = lane.settle(self.upstream, ids, ack, &self.state.book);
            if settled.has_moved {
                lane.publish_held(&settled.state, &self.state.bounds);
            }
            let is_readable = settled.is_readable;
            drop(settled);
            // An error only costs repetitions after a kill: maintenance saves the cursor within a
            // second, and reports its errors.
            _ = lane.save_acks(self.upstream);
            if is_readable {
                self.state.upstreams[self.upstream].readable.notify_one();
            }
        }
    }

    /// When the oldest event was received that waits in a lane which is not held, in milliseconds
    /// since 1970, UTC. `None`: none waits there.
    pub fn unheld_ms(&self) -> Option<u64> {
        let unheld = self.state.unheld.lock();
        unheld.iter().filter_map(|lane| *lane.oldest_ms.get(self.upstream)?).min()
    }

    /// Whether events wait only in lanes that are not held, until older lanes are delivered to all
    /// upstreams. Maintenance finds it out once a second.
    pub fn is_held_back(&self) -> bool {
        self.state.upstreams[self.upstream].held_back.load(Relaxed)
    }

    /// Whether reading waits because too many separate events are stuck: see [`RUNS_MAX`].
    ///
    /// [`RUNS_MAX`]: super::ledger::RUNS_MAX
    pub fn is_at_bound(&self) -> bool {
        let is_full = |lane: &Arc<Lane>| !lane.state().positions[self.upstream].has_room();
        self.state.lanes().iter().any(is_full)
    }
}
