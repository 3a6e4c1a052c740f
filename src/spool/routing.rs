//! Records that are meant for some upstreams only (SPEC 5, `upstreams`).
//!
//! The spool knows no events, so it is opened with functions that read the route of a record. A
//! record that is not meant for an upstream is *foreign* to it. It is in none of that upstream's
//! counts, and the upstream's reader passes over it. A segment is trimmed when every upstream has
//! acknowledged or passed over each of its records.
//!
//! **The route is decided when the event is accepted, and stored in the record.** If it were
//! decided when the event is read, a changed rule could send waiting events to upstreams for which
//! they were not accepted, or withhold them from the others; the counts of an upstream would change
//! with the rules; and after a kill, a delivered event could count as foreign. A route holds the
//! names of upstreams and not their numbers, because the configuration may change. A record without
//! a route is meant for every upstream, even one that is added later; so is each record of earlier
//! versions. A record with a route is never meant for an upstream that the route does not name.
//!
//! **How the counts stay exact.** They follow from sequence numbers: `accepted` is the end of the
//! lane minus the start of the position, minus the foreign records in between. So foreign records
//! are counted when they are committed, together with the new end of the lane and under the same
//! lock. Each cursor holds the count and the number up to which it reaches. A process that adopts
//! the lane counts from there to the end of the lane (`recovery/count_foreign.rs`), which is little
//! more than one segment, because each new segment writes the cursor. The bytes of a damaged record
//! do not say for which upstreams it was meant. It counts as lost for every upstream, and the
//! reader counts the foreign records after it again.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::format;
use super::format::RECORD_HEADER_BYTES;

/// The functions that read the route of a record.
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

/// Whether a routed record was ever appended. Until then, the committer does not read records.
#[derive(Default)]
pub struct AnyRouted(AtomicBool);

impl AnyRouted {
    /// Notes whether a record is routed, before it is staged.
    pub fn note(&self, is_routed: bool) {
        if is_routed {
            self.0.store(true, Relaxed);
        }
    }

    /// Whether a routed record was noted. Relaxed is enough, because the lock of the staging buffer
    /// orders the note before its record.
    pub fn get(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// The numbers of records of a commit that are foreign to each upstream, until the commit is
/// published.
#[derive(Default)]
pub struct Foreign {
    /// The counts in the order of the configuration. `None` while no record of the commit is
    /// routed.
    counts: Option<Vec<u64>>,
}

impl Foreign {
    /// Counts consecutive staged records.
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

    /// Takes the counts. `None` if no record was routed.
    pub fn take(&mut self) -> Option<Vec<u64>> {
        self.counts.take()
    }

    /// Drops the counts of records that were refused.
    pub fn clear(&mut self) {
        self.counts = None;
    }
}
