//! Reads a request before it is judged: target, path guard, client address and context (SPEC 2).
//!
//! This room does no I/O and is not async.

pub mod client;
pub mod context;
mod forwarded;
pub mod path;
pub(crate) mod readings;
#[cfg(feature = "server")]
pub(crate) mod simd;
pub mod target;
pub mod trace;
