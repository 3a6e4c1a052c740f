//! The log: lines on standard error, as text or as JSON (SPEC 8).
//!
//! Each change of state is one line. A warning or error that repeats is written once and then
//! counted ([`dedup`]). Lines that remote clients can cause are limited in rate ([`throttle`]).
//! No line holds a part of a request, because requests hold personal data: the code that logs takes
//! care of that, and `tests/edge/discretion.rs` checks it. The lines of other crates that are less
//! severe than a warning quote requests, so they are not written even if `RUST_LOG` asks for them.

pub mod config;

mod dedup;
mod setup;
mod throttle;

pub use setup::{is_overridden, reload, start};
