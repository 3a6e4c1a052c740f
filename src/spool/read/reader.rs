//! Reading for one upstream, and acknowledging.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::ledger::Ack;
use super::scanner::{Scanner, Step};
use crate::spool::SpoolState;
use crate::spool::fs::{File, Open};
use crate::spool::lane::Lane;
use crate::spool::segment_index::View;

/// The place of one record. Opaque; ordered as the records of one lane are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    pub(crate) lane: u64,
    pub(crate) seq: u64,
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.lane, self.seq)
    }
}

/// A record, to be acknowledged by its seat.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its place.
    pub seat: RecordId,
    /// What was appended. A slice of the block that was read: a copy frees the block.
    pub payload: Bytes,
}

/// Reads the records of all lanes for one upstream, oldest lane first, each lane in order.
pub struct Reader {
    shared: Arc<SpoolState>,
    upstream: usize,
    walks: HashMap<u64, (Scanner, Arc<dyn File>)>,
    /// The lane whose reading fails, told once.
    failing: Option<u64>,
}

/// What one round on a segment came to.
enum ReadPass {
    /// Go on with the same lane.
    More,
    /// Nothing more in this lane for now.
    Enough,
}

impl Reader {
    pub(crate) fn new(shared: Arc<SpoolState>, upstream: usize) -> Reader {
        Reader { shared, upstream, walks: HashMap::new(), failing: None }
    }

    /// Waits until at least one record is readable, and returns up to `events_max` records of up
    /// to `bytes_max` bytes in all (one record may be larger). Records that were read and not
    /// acknowledged are not returned again before a restart; when too many are out
    /// ([`super::RUN_AHEAD_EVENTS_MAX`]) it waits for acknowledgements. May be dropped while it
    /// waits: nothing is lost.
    pub async fn read(&mut self, events_max: usize, bytes_max: usize) -> Vec<Entry> {
        let shared = Arc::clone(&self.shared);
        loop {
            let entries = self.try_read(events_max, bytes_max);
            if !entries.is_empty() {
                return entries;
            }
            // A wake-up between the look and this wait has left its permit.
            shared.upstreams[self.upstream].readable.notified().await;
        }
    }

    /// What is readable now; nothing if nothing is. Reads from disk, mostly from its cache.
    pub fn try_read(&mut self, events_max: usize, bytes_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let lanes = self.shared.lanes();
        self.walks.retain(|id, _| lanes.iter().any(|lane| lane.id == *id));
        let mut bytes = 0;
        for lane in lanes {
            loop {
                match self.round(&lane, events_max, bytes_max, &mut bytes, &mut entries) {
                    Ok(round) => {
                        self.failing = self.failing.filter(|failing| *failing != lane.id);
                        if matches!(round, ReadPass::Enough) {
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

    /// A handle to say what became of records.
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger { shared: Arc::clone(&self.shared), upstream: self.upstream }
    }

    fn round(
        &mut self,
        lane: &Lane,
        events_max: usize,
        bytes_max: usize,
        bytes: &mut usize,
        entries: &mut Vec<Entry>,
    ) -> io::Result<ReadPass> {
        let (view, next, room) = {
            let mut state = lane.state();
            let account = &mut state.accounts[self.upstream];
            let (next, room) = (account.next(), account.room());
            let Some(view) = state.log.view(next) else { return Ok(ReadPass::Enough) };
            (view, next, room)
        };
        if view.span.base > next {
            return Ok(self.lose(lane, view, view.span.base));
        }
        let number = view.span.number;
        if self.walks.get(&lane.id).is_none_or(|(walk, _)| walk.number != number) {
            let file = match lane.fs().open(&lane.segment_path(number), Open::Read) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !view.open => {
                    return Ok(self.lose(lane, view, view.limit));
                }
                other => other?,
            };
            let walk = Scanner::new(number, lane.salt, view.span.base);
            self.walks.insert(lane.id, (walk, file));
        }
        let Some((walk, file)) = self.walks.get_mut(&lane.id) else { return Ok(ReadPass::Enough) };
        let before = entries.len();
        let step = loop {
            let handed_out = entries.len() - before;
            if handed_out == room || entries.len() >= events_max || *bytes >= bytes_max {
                break Ok(None);
            }
            match walk.step(&**file, view.span.bytes, view.limit) {
                Ok(Step::Record { seq, .. }) if seq < next => {}
                Ok(Step::Record { payload, .. })
                    if !entries.is_empty() && *bytes + payload.len() > bytes_max =>
                {
                    // Looked at too early: the next read begins with it.
                    walk.step_back(payload.len() as u64);
                    *bytes = bytes_max;
                }
                Ok(Step::Record { seq, payload }) => {
                    *bytes += payload.len();
                    entries.push(Entry { seat: RecordId { lane: lane.id, seq }, payload });
                }
                other => break other.map(Some),
            }
        };
        let (file, offset) = (Arc::clone(file), walk.offset);
        lane.state().accounts[self.upstream].hand_out(entries.len() - before);
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
        let next = lane.state().accounts[self.upstream].next();
        if lane.state().log.view(next).is_none_or(|now| !now.covers(&view)) {
            self.walks.remove(&lane.id);
            return ReadPass::More;
        }
        if !bytes.is_empty() {
            self.shared.quarantine.keep(lane.id, view.span.number, file, bytes);
        }
        self.lose(lane, view, seq)
    }

    fn lose(&mut self, lane: &Lane, view: View, seq: u64) -> ReadPass {
        let mut state = lane.state();
        let account = &mut state.accounts[self.upstream];
        let lost = seq.saturating_sub(account.next());
        if lost == 0 {
            return ReadPass::More;
        }
        if !account.lose_to(seq) {
            drop(state);
            // Find the gap again once what is out has come back.
            self.walks.remove(&lane.id);
            return ReadPass::Enough;
        }
        account.advance();
        state.dirty = true;
        lane.publish_held(&state, &self.shared.bounds);
        drop(state);
        ::log::error!(
            "spool: {lost} events of lane {} are lost to damage before number {seq} \
             (segment {}) for upstream {:?}",
            lane.id,
            view.span.number,
            self.shared.upstreams[self.upstream].name
        );
        ReadPass::More
    }

    fn read_failed(&mut self, lane: &Lane, error: &io::Error) {
        if self.failing.replace(lane.id) != Some(lane.id) {
            ::log::error!("spool: reading lane {} fails, trying again: {error}", lane.id);
        }
        self.walks.remove(&lane.id);
        // The keeper wakes this reader at its next turn.
        self.shared.retry_reads();
    }
}

/// Says what became of records. Cheap to clone; any thread, any order.
#[derive(Clone)]
pub struct Acknowledger {
    shared: Arc<SpoolState>,
    upstream: usize,
}

impl Acknowledger {
    /// These records need not be read again. A seat that was not handed out, or has its fate
    /// already, is ignored. Durable within about a second, and at close.
    pub fn acknowledge(&self, seats: &[RecordId], fate: Ack) {
        let lanes = self.shared.lanes();
        let mut seats = seats;
        while let Some(first) = seats.first() {
            let same = seats.iter().take_while(|seat| seat.lane == first.lane).count();
            let (now, rest) = seats.split_at(same);
            seats = rest;
            let Some(lane) = lanes.iter().find(|lane| lane.id == first.lane) else { continue };
            let mut state = lane.state();
            let account = &mut state.accounts[self.upstream];
            let was_full = account.room() == 0;
            for seat in now {
                account.settle(seat.seq, fate);
            }
            if account.advance() {
                state.dirty = true;
                lane.publish_held(&state, &self.shared.bounds);
                drop(state);
                if was_full {
                    self.shared.upstreams[self.upstream].readable.notify_one();
                }
            }
        }
    }
}
