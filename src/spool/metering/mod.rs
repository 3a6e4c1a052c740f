//! Counts how many records of each portal were accepted, rejected and delivered, over the life of
//! the spool (SPEC 8).
//!
//! The spool knows no events, so it is opened with a function that reads the portal and the day of
//! a record. Counting costs a request nothing: the committer counts the records that it commits,
//! and the task of an upstream counts those that it acknowledges. [`Book`](book::Book) holds the
//! totals of all lanes that this process has. After a restart they are read from a file in each
//! lane.
//!
//! # Why the counts are exact
//!
//! The file of a lane (`journal.rs`) is written once a second. It says up to which record it counts
//! accepted records and, for each upstream, which records had ended. A process that takes the lane
//! over reads the later records and counts them (`recount.rs`). The records themselves say what was
//! accepted; the cursor and the ack file say what was delivered. So a segment is trimmed only when
//! the file counts all of its records. The set of ended records only grows, and the file is one of
//! the sources from which a start reads this set. So the file never counts a record as ended that a
//! start takes for pending.
//!
//! The cursor does not hold which records of a run went to the dead letters. So the file names
//! these records before they are acknowledged.
//!
//! When a delivered lane is folded into another one, its counts are written into the other's file,
//! under the number and salt of the delivered lane, before the cursor names that lane. They count
//! there if the cursor names the lane or its folder is gone, and else in the lane itself. So they
//! always count once.
//!
//! # What is not exact
//!
//! Rejected events are in no record, so a kill of the process loses those of the last second. A
//! record that is damaged before its portal was counted is counted under [`OTHER`](table::OTHER),
//! as accepted and, where an upstream has it, as delivered. If the file of a lane is missing or
//! damaged, its counts begin with the records that the lane still holds. The log and a fault report
//! this, and [`since`](book::Book::since_ms) is the time from which the totals count. An event that
//! `memory` or `interval` loses stays in the counts if the cursor or this file knows it. If it was
//! accepted after their last write, about a second ago, it is in no count.

pub(super) mod book;
pub(super) mod contents;
pub(super) mod counts;
pub(super) mod follow;
pub(super) mod format;
pub(super) mod journal;
pub(super) mod living;
pub(super) mod recount;
pub(super) mod table;
mod tally;

/// How to read the portal and the day that a record is counted under.
#[derive(Clone, Copy)]
pub struct Metering {
    /// Returns the portal and the day of a record, or `None` if it has none or cannot be read.
    pub read: fn(record: &[u8]) -> Option<Metered>,
}

/// The portal and the day that a record is counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    /// The portal; never 0.
    pub portal: u64,
    /// The UTC day on which the event was received, in days since 1970-01-01.
    pub day: u32,
}

impl Metering {
    /// Counts all records together, as if none had a portal.
    pub fn none() -> Metering {
        Metering { read: |_| None }
    }
}
