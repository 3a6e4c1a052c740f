//! Which upstreams a record is meant for.
//!
//! The spool knows no event: it is opened with functions that read a record's route. A record that
//! is not meant for an upstream is *foreign* to it. It is in none of that upstream's counts, and
//! the upstream's reader passes over it. A segment is trimmed when every upstream has acknowledged
//! or passed over each of its records.
//!
//! **The route is decided when the event is accepted, and stands in the record.** Were it looked up
//! when the event is read, a changed rule would send events that wait to upstreams that they were
//! not accepted for, or withhold them from those they were; the counts of one upstream would change
//! with the rules; and after a kill an event that was delivered could count as never meant for it.
//! A route names upstreams and not their numbers, because the configuration may change. A record
//! without a route is meant for every upstream, also one that is added later, as is each record of
//! earlier versions; one with a route is never meant for an upstream that it does not name.
//!
//! **How the counts stay exact.** They follow from sequence numbers: `accepted` is the lane's end
//! minus the position's start, minus the foreign records in between. So these are counted when they
//! are committed, together with the lane's new end and under the same lock. Each cursor holds the
//! count and the number up to which it reaches; a process that adopts the lane counts on from there
//! to the lane's end (`recovery/count_foreign.rs`). Cursors are written with each new segment at
//! the latest, so that is little more than one segment. The bytes of a damaged record do not say
//! whom it was meant for: it counts as lost for every upstream, and the reader counts the foreign
//! records behind it anew.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::format;
use super::format::RECORD_HEADER_BYTES;

/// How to read a record's route.
#[derive(Clone, Copy)]
pub struct Routing {
    /// Whether the record is not meant for every upstream. Called for each record.
    pub is_routed: fn(record: &[u8]) -> bool,
    /// Whether a routed record is meant for the upstream of this name.
    pub names: fn(record: &[u8], upstream: &str) -> bool,
}

impl Routing {
    /// Every record is meant for every upstream.
    pub fn none() -> Routing {
        Routing { is_routed: |_| false, names: |_, _| true }
    }

    /// Whether a record is foreign to an upstream.
    pub fn is_foreign(&self, record: &[u8], upstream: &str) -> bool {
        (self.is_routed)(record) && !(self.names)(record, upstream)
    }
}

/// Whether a routed record was appended. Until then the committer looks at no record.
#[derive(Default)]
pub struct AnyRouted(AtomicBool);

impl AnyRouted {
    /// Notes a record before it is staged.
    pub fn note(&self, is_routed: bool) {
        if is_routed {
            self.0.store(true, Relaxed);
        }
    }

    /// Relaxed is enough: the lock of the staging buffer orders the note before its record.
    pub fn get(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// How many records of a commit are foreign to each upstream, until the commit is published.
#[derive(Default)]
pub struct Foreign {
    /// In the configuration's order. `None` while no record of the commit is routed.
    counts: Option<Vec<u64>>,
}

impl Foreign {
    /// Counts staged records, one behind the other.
    pub fn count<'a>(
        &mut self,
        mut staged: &[u8],
        routing: &Routing,
        upstreams: impl Iterator<Item = &'a str> + Clone,
    ) {
        while staged.len() >= RECORD_HEADER_BYTES {
            let (record, rest) = staged.split_at(format::record_bytes(staged).min(staged.len()));
            staged = rest;
            let payload = &record[RECORD_HEADER_BYTES.min(record.len())..];
            if !(routing.is_routed)(payload) {
                continue;
            }
            let counts = self.counts.get_or_insert_default();
            counts.resize(upstreams.clone().count(), 0);
            for (count, upstream) in counts.iter_mut().zip(upstreams.clone()) {
                *count += u64::from(!(routing.names)(payload, upstream));
            }
        }
    }

    /// Takes the counts; `None` if no record was routed.
    pub fn take(&mut self) -> Option<Vec<u64>> {
        self.counts.take()
    }

    /// Forgets records that were refused.
    pub fn clear(&mut self) {
        self.counts = None;
    }
}
