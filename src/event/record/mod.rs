//! An accepted event as bytes: how the spool keeps it, and how upstreams receive it (SPEC 7).
//!
//! `encode.rs` specifies and writes the stored format. `raw.rs` finds the fields of a stored record
//! and writes the JSON that is delivered. `decode.rs` reads a record and checks all of it;
//! `from_wire.rs` makes a record of that JSON again.
//! `route.rs` specifies what stands before a record that is not meant for every upstream.

pub(super) mod decode;
pub(super) mod encode;
pub(super) mod error;
pub(super) mod from_wire;
pub(super) mod raw;
pub(super) mod route;
mod timestamp;
mod wire;
