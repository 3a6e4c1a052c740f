//! An accepted event as bytes: as the spool stores it, and as upstreams receive it (SPEC 7).
//!
//! `encode.rs` specifies and writes the stored record. `raw.rs` finds the fields of a record and
//! writes the JSON that is delivered. `decode.rs` reads a record and checks all of it.
//! `from_wire.rs` turns delivered JSON back into a record. `route.rs` specifies the prefix of a
//! record that is not meant for every upstream.

pub(super) mod decode;
pub(super) mod encode;
pub(super) mod error;
pub(super) mod from_wire;
pub(super) mod raw;
pub(super) mod route;
mod timestamp;
mod wire;
