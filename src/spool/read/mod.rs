//! Reads records from disk for an upstream, and stores which of them it has acknowledged.

pub(super) mod ack_file;
pub(super) mod counts;
pub(super) mod cursor;
pub(super) mod ledger;
pub(super) mod named_totals;
pub(super) mod reader;
pub(super) mod runs;
pub(super) mod scanner;
mod slot;
