//! Reads records from disk for an upstream, and stores which of them the upstream has acknowledged.
//!
//! `reader.rs` reads records and takes acknowledgements; `scanner.rs` finds records in a segment.
//! `ledger.rs` is the position of an upstream in a lane, `runs.rs` the part of it above the low
//! watermark. `cursor.rs` and `ack_file.rs` store positions in files, whose slots `slot.rs` frames.

pub(super) mod ack_file;
pub(super) mod counts;
pub(super) mod cursor;
pub(super) mod ledger;
pub(super) mod named_totals;
pub(super) mod reader;
pub(super) mod runs;
pub(super) mod scanner;
mod slot;
