//! How many records of each portal were accepted, rejected and delivered, over the spool's life.
//!
//! The spool knows no event: it is opened with a function that reads a record's portal and day.
//! Counting costs a request nothing: the committer counts what it commits, an upstream's task what
//! it acknowledges. [`Book`](book::Book) holds the totals of all lanes that this process has;
//! each lane has a file that they are made anew from.
//!
//! # Why the counts are exact
//!
//! A lane's file (`journal.rs`) says up to which record the accepted ones are counted in it, and
//! for each upstream which records had ended. It is written once a second. A process that takes the
//! lane over reads the records behind that point, and counts them as it finds them
//! (`recount.rs`): what is accepted follows from the records, what is delivered from what the
//! cursor and the ack file say has ended. So a segment is trimmed only when the lane's file counts
//! all of it. What has ended only grows, and the file itself is one of the places from which it is
//! known. So it never counts what another place says has not ended.
//!
//! Where records end in runs, the cursor does not say which of them went to the dead letters. So
//! the file names these before they are acknowledged.
//!
//! When a delivered lane is folded into another, its counts go into the other's file under the
//! lane's identity, before the cursor names the lane. They count there when the cursor names it or
//! the lane's folder is gone, and in the lane itself otherwise: so they always count once.
//!
//! # What is not exact
//!
//! Rejected events are in no record: the last second of them is lost when a process is killed. A
//! record that is damaged before its portal was counted is accepted under [`OTHER`](table::OTHER).
//! Where a lane's file is missing or damaged, its counts begin with the records that it still
//! holds; the log and a fault say so, and [`since`](book::Book::since_ms) from when they count.
//! `memory` and `interval` lose with their events the counts of these.

pub(super) mod book;
pub(super) mod contents;
pub(super) mod counts;
pub(super) mod format;
pub(super) mod journal;
pub(super) mod recount;
pub(super) mod table;
mod tally;

/// How to read what a record is counted under.
#[derive(Clone, Copy)]
pub struct Metering {
    /// Its portal. `None`: it has none, or it cannot be read.
    pub read: fn(record: &[u8]) -> Option<Metered>,
}

/// What a record is counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metered {
    /// Its portal; not 0.
    pub portal: u64,
    /// The UTC day of its receipt, counted from 1970-01-01.
    pub day: u32,
}

impl Metering {
    /// No record has a portal: all are counted together.
    pub fn none() -> Metering {
        Metering { read: |_| None }
    }
}
