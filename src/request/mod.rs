//! Reading a request before it is judged: target, path guard, client address and context.
//!
//! No I/O and no async.

pub mod client;
pub mod context;
pub mod path;
pub(crate) mod readings;
#[cfg(feature = "server")]
pub(crate) mod simd;
pub mod target;
pub mod trace;
