//! The access log: one line for each request, events and proxied requests alike (SPEC 8).
//!
//! The library tells what became of a request ([`AccessRecord`]); this module writes it as a line
//! and buffers lines for a thread that writes them to the file. A request waits for that thread
//! never, and for a lock only as long as it takes to copy a line.
//!
//! [`AccessRecord`]: pixelgate::custom::AccessRecord

pub mod config;

mod buffer;
mod in_force;
mod line;
mod time;
mod writer;

pub use in_force::AccessLogs;
pub use writer::{AccessLogFile, Opened};
