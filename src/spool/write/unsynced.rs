//! The records in memory that are not yet durable.
//!
//! They stay here until they are as durable as the mode demands, so that they can be written a
//! second time, into another segment, after a write or a sync has failed.

use crate::spool::format;
use crate::spool::format::{ChecksumSeed, RECORD_HEADER_BYTES};

/// The records that are not yet durable. All byte counts are from the front.
#[derive(Default)]
pub struct Unsynced {
    pub bytes: Vec<u8>,
    /// The sequence number of the first record.
    pub base: u64,
    pub events: u64,
    /// The number of bytes that are in the segment.
    pub written: usize,
    /// The number of bytes whose events were answered, and which must not be given up.
    pub answered: usize,
    pub answered_events: u64,
}

impl Unsynced {
    /// Gives the records that are not written yet their numbers in a segment.
    pub fn place(&mut self, seed: ChecksumSeed) {
        let mut at = self.written;
        let mut seq = self.base + count(&self.bytes[..at]);
        while at < self.bytes.len() {
            at += format::place(&mut self.bytes[at..], seed, seq);
            seq += 1;
        }
    }

    /// Turns all records back into staged ones.
    pub fn unplace(&mut self) {
        let mut at = 0;
        while at < self.bytes.len() {
            let bytes = format::record_bytes(&self.bytes[at..]);
            format::unplace(&mut self.bytes[at..at + bytes]);
            at += bytes;
        }
        self.written = 0;
    }

    /// The sequence number after the last record.
    pub fn end(&self) -> u64 {
        self.base + self.events
    }

    /// Marks every record as answered.
    pub fn set_answered(&mut self) {
        self.answered = self.bytes.len();
        self.answered_events = self.events;
    }

    /// Removes the first records, because they are durable.
    pub fn remove(&mut self, bytes: usize, events: u64) {
        self.written = self.written.saturating_sub(bytes);
        self.answered = self.answered.saturating_sub(bytes);
        self.answered_events = self.answered_events.saturating_sub(events);
        self.base += events;
        self.events -= events;
        self.bytes.drain(..bytes);
    }

    /// Removes the records that were not answered, and returns their bytes.
    pub fn drop_unanswered(&mut self) -> usize {
        let dropped = self.bytes.len() - self.answered;
        self.bytes.truncate(self.answered);
        self.events = self.answered_events;
        dropped
    }
}

/// The number of records in these bytes.
pub fn count(mut records: &[u8]) -> u64 {
    let mut events = 0;
    while records.len() >= RECORD_HEADER_BYTES {
        records = &records[format::record_bytes(records).min(records.len())..];
        events += 1;
    }
    events
}
