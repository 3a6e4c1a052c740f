//! Reading for one upstream, and acknowledging.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::counts::Ack;
use super::scanner::{Scanner, Step};
use crate::spool::fs::{File, Open};
use crate::spool::lane::Lane;
use crate::spool::record_id::RecordId;
use crate::spool::segment_index::View;
use crate::spool::state::SpoolState;

/// A record, to be acknowledged by its id.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its place.
    pub record_id: RecordId,
    /// What was appended. A slice of the block that was read: a copy frees the block.
    pub payload: Bytes,
}

/// Reads the records of all lanes for one upstream, oldest lane first, each lane in order.
pub struct Reader {
    state: Arc<SpoolState>,
    upstream: usize,
    scanners: HashMap<u64, (Scanner, Arc<dyn File>)>,
    /// The lane whose reading fails, logged once.
    failing: Option<u64>,
}

/// What one pass over a segment came to.
enum ReadPass {
    /// Go on with the same lane.
    More,
    /// Nothing more in this lane for now.
    Enough,
}

impl Reader {
    pub(crate) fn new(state: Arc<SpoolState>, upstream: usize) -> Reader {
        Reader { state, upstream, scanners: HashMap::new(), failing: None }
    }

    /// Waits until at least one record is readable, and returns up to `events_max` records of up
    /// to `bytes_max` bytes in all (one record may be larger). Records that were read and not
    /// acknowledged are not returned again before a restart. When [`RUNS_MAX`] runs of
    /// acknowledged records lie between those that are not, it waits for acknowledgements. May be
    /// dropped while it waits: nothing is lost.
    ///
    /// [`RUNS_MAX`]: super::ledger::RUNS_MAX
    pub async fn read(&mut self, events_max: usize, bytes_max: usize) -> Vec<Entry> {
        let state = Arc::clone(&self.state);
        loop {
            let entries = self.try_read(events_max, bytes_max);
            if !entries.is_empty() {
                return entries;
            }
            // A wake-up between the look and this wait has left its permit.
            state.upstreams[self.upstream].readable.notified().await;
        }
    }

    /// What is readable now; nothing if nothing is. Reads from disk, mostly from its cache.
    pub fn try_read(&mut self, events_max: usize, bytes_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let lanes = self.state.lanes();
        self.scanners.retain(|id, _| lanes.iter().any(|lane| lane.id == *id));
        let mut bytes = 0;
        for lane in lanes {
            loop {
                match self.read_pass(&lane, events_max, bytes_max, &mut bytes, &mut entries) {
                    Ok(pass) => {
                        self.failing = self.failing.filter(|failing| *failing != lane.id);
                        if matches!(pass, ReadPass::Enough) {
                            break;
                        }
                    }
                    Err(error) => {
                        self.read_failed(&lane, &error);
                        break;
                    }
                }
            }
            if entries.len() >= events_max || bytes >= bytes_max {
                break;
            }
        }
        entries
    }

    /// Whether the last read failed. It is tried again each second.
    pub fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// A handle to say what became of records.
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger { state: Arc::clone(&self.state), upstream: self.upstream }
    }

    fn read_pass(
        &mut self,
        lane: &Lane,
        events_max: usize,
        bytes_max: usize,
        bytes: &mut usize,
        entries: &mut Vec<Entry>,
    ) -> io::Result<ReadPass> {
        let (view, next) = {
            let state = lane.state();
            let position = &state.positions[self.upstream];
            let next = position.next();
            let view = state.segment_index.view(next.start).filter(|_| position.has_room());
            let Some(view) = view else { return Ok(ReadPass::Enough) };
            (view, next)
        };
        if view.span.base > next.start {
            return Ok(self.lose(lane, view, view.span.base));
        }
        let number = view.span.number;
        if self.scanners.get(&lane.id).is_none_or(|(scanner, _)| scanner.number != number) {
            let file = match lane.fs().open(&lane.segment_path(number), Open::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !view.open => {
                    return Ok(self.lose(lane, view, view.limit));
                }
                other => other?,
            };
            let scanner = Scanner::new(number, lane.salt, view.span.base);
            self.scanners.insert(lane.id, (scanner, file));
        }
        let Some((scanner, file)) = self.scanners.get_mut(&lane.id) else {
            return Ok(ReadPass::Enough);
        };
        let before = entries.len();
        let step = loop {
            if entries.len() >= events_max || *bytes >= bytes_max {
                break Ok(None);
            }
            if scanner.seq >= next.end {
                break Ok(Some(Step::End));
            }
            match scanner.step(&**file, view.span.bytes, view.limit) {
                Ok(Step::Record { seq, .. }) if seq < next.start => {}
                Ok(Step::Record { payload, .. })
                    if !entries.is_empty() && *bytes + payload.len() > bytes_max =>
                {
                    // Looked at too early: the next read begins with it.
                    scanner.step_back(payload.len() as u64);
                    *bytes = bytes_max;
                }
                Ok(Step::Record { seq, payload }) => {
                    *bytes += payload.len();
                    entries.push(Entry { record_id: RecordId { lane: lane.id, seq }, payload });
                }
                other => break other.map(Some),
            }
        };
        let (file, offset) = (Arc::clone(file), scanner.offset);
        lane.state().positions[self.upstream].hand_out(entries.len() - before);
        Ok(match step? {
            None | Some(Step::Record { .. }) => ReadPass::Enough,
            Some(Step::End) => ReadPass::More,
            Some(Step::Gap { seqs, bytes }) => self.damaged(lane, view, &*file, bytes, seqs.end),
            Some(Step::Tail) => {
                self.damaged(lane, view, &*file, offset..view.span.bytes, view.limit)
            }
        })
    }

    /// A bad spot, unless the segment was cut while it was read.
    fn damaged(
        &mut self,
        lane: &Lane,
        view: View,
        file: &dyn File,
        bytes: std::ops::Range<u64>,
        seq: u64,
    ) -> ReadPass {
        let next = lane.state().positions[self.upstream].next().start;
        if lane.state().segment_index.view(next).is_none_or(|now| !now.covers(&view)) {
            self.scanners.remove(&lane.id);
            return ReadPass::More;
        }
        if !bytes.is_empty() {
            self.state.quarantine.keep(lane.id, view.span.number, file, bytes);
        }
        self.lose(lane, view, seq)
    }

    fn lose(&mut self, lane: &Lane, view: View, seq: u64) -> ReadPass {
        let mut state = lane.state();
        let position = &mut state.positions[self.upstream];
        let lost_before = position.totals(0).lost;
        position.lose_to(seq);
        let lost = position.totals(0).lost - lost_before;
        if lost == 0 {
            return ReadPass::More;
        }
        state.dirty = true;
        lane.publish_held(&state, &self.state.bounds);
        drop(state);
        ::log::error!(
            "spool: {lost} events of lane {} are lost to damage before number {seq} \
             (segment {}) for upstream {:?}",
            lane.id,
            view.span.number,
            self.state.upstreams[self.upstream].name
        );
        ReadPass::More
    }

    fn read_failed(&mut self, lane: &Lane, error: &io::Error) {
        if self.failing.replace(lane.id) != Some(lane.id) {
            ::log::error!("spool: reading lane {} fails, trying again: {error}", lane.id);
        }
        self.scanners.remove(&lane.id);
        // Maintenance wakes this reader at its next turn.
        self.state.retry_reads();
    }
}

/// Says what became of records. Cheap to clone; any thread, any order.
#[derive(Clone)]
pub struct Acknowledger {
    state: Arc<SpoolState>,
    upstream: usize,
}

impl Acknowledger {
    /// These records need not be read again, even if the process is killed after this call; after
    /// a power loss, from the next second on. A record that was not handed out, or has its ack
    /// already, is ignored.
    pub fn acknowledge(&self, record_ids: &[RecordId], ack: Ack) {
        let lanes = self.state.lanes();
        for ids in record_ids.chunk_by(|id, next| id.lane == next.lane) {
            let Some(lane) = lanes.iter().find(|lane| lane.id == ids[0].lane) else { continue };
            let mut state = lane.state();
            let position = &mut state.positions[self.upstream];
            let was_full = !position.has_room();
            for run in ids.chunk_by(|id, next| id.seq + 1 == next.seq) {
                position.settle(run[0].seq..run[run.len() - 1].seq + 1, ack);
            }
            let is_readable = was_full && position.has_room();
            let has_moved = position.advance();
            state.dirty = true;
            if has_moved {
                lane.publish_held(&state, &self.state.bounds);
            }
            drop(state);
            // An error costs repetitions after a kill and nothing else: maintenance saves the
            // cursor within a second, and reports its errors.
            _ = lane.save_acks(self.upstream);
            if is_readable {
                self.state.upstreams[self.upstream].readable.notify_one();
            }
        }
    }

    /// Whether reading waits because too many runs lie behind events that are stuck.
    pub fn is_at_bound(&self) -> bool {
        let is_full = |lane: &Arc<Lane>| !lane.state().positions[self.upstream].has_room();
        self.state.lanes().iter().any(is_full)
    }
}
