//! The access log: one line for each request, events and proxied requests alike (SPEC 8).
//!
//! The library makes a record of each request ([`AccessRecord`]). This module writes the record as
//! a line into a buffer, and a thread writes the buffer to the file. A request never waits for
//! this thread, and for a lock only while a line is copied.
//!
//! [`AccessRecord`]: pixelgate::custom::AccessRecord

pub mod config;

mod buffer;
mod in_force;
mod line;
pub mod others;
mod time;
mod writer;

pub use in_force::AccessLogs;
pub use writer::{AccessLogFile, Opened};
