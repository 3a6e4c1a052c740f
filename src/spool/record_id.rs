//! The identity of one record.

/// The identity of one record. It is opaque, and ordered as the records of a lane are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId {
    pub(crate) lane: u64,
    pub(crate) seq: u64,
    /// The number under which the record's portal is counted: see `metering/table.rs`.
    pub(crate) portal: u32,
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.lane, self.seq)
    }
}
