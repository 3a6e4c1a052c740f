//! Backfill: sends events from files in their wire form to one upstream (SPEC 8, `pixelgate send`).
//!
//! The events do not pass through the spool and are in none of its counts. They keep their ids. An
//! event that the upstream refuses for good becomes a dead letter of that upstream.
//!
//! `progress.rs` stores which lines of a file the upstream has acknowledged, so that a command that
//! ends early, by a signal or a crash, repeats at most the one batch that was on its way.
//! `input.rs` reads a file and picks the events, `send.rs` delivers them.

mod error;
mod input;
mod options;
mod progress;
mod send;

pub use error::BackfillError;
pub use input::{Counts, LINE_BYTES_MAX};
pub use options::{Filter, Options};
pub use progress::forget;
pub use send::{Backfill, Totals, survey};
