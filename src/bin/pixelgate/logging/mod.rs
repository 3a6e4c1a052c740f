//! The log: lines on standard error, as text or as JSON (SPEC 8).
//!
//! Each change of state is one line. A warning or error that repeats is logged once and then
//! counted ([`dedup`]); lines that remote clients can trigger are limited in rate ([`throttle`]).
//! No line contains anything of a request: the code that logs takes care of that, and
//! `tests/edge/discretion.rs` checks it. Other crates log warnings and errors only, even if
//! `RUST_LOG` asks for more, because below that they quote requests and so personal data.

pub mod config;

mod dedup;
mod setup;
mod throttle;

pub use setup::{reload, start};
