//! Backfill: sends events from files in their wire form to one upstream (SPEC 8, `pixelgate send`).
//!
//! The events do not pass through the spool and are in none of its counts. They keep their ids. An
//! event that the upstream refuses for good becomes a dead letter of that upstream.
//!
//! ```
//! use pixelgate::Upstream;
//! use pixelgate::tools::backfill::{Backfill, BackfillError, Options, Totals};
//! use std::{fs::File, io::BufReader, path::Path};
//!
//! /// Sends the events of one file to the upstream that `options` names.
//! async fn send(
//!     options: &Options,
//!     upstream: &dyn Upstream,
//!     path: &Path,
//! ) -> Result<Totals, BackfillError> {
//!     let (_stop, stopped) = tokio::sync::watch::channel(false);
//!     let mut backfill = Backfill::new(options, upstream, stopped);
//!     let file = BufReader::new(File::open(path).map_err(BackfillError::Read)?);
//!     backfill.send(path, file, |bytes| println!("{bytes} bytes read")).await?;
//!     Ok(backfill.totals().clone())
//! }
//! ```
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
