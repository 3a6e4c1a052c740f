//! Writes records to disk, from the bytes of an event to its commit.
//!
//! `admission.rs` refuses records beyond the limits, `group.rs` stages them, and `commit.rs`
//! writes, syncs and answers them, with `syncer.rs` in `interval`. `unsynced.rs` holds records in
//! memory until they are durable. `segment.rs` and `blocks.rs` write a file. `waiting.rs` has the
//! deadline of a commit, which `watch.rs` enforces.

pub(super) mod admission;
mod blocks;
pub(super) mod commit;
mod counted;
pub(super) mod group;
pub(super) mod segment;
mod sync;
pub(super) mod syncer;
mod unsynced;
pub(super) mod waiting;
pub(super) mod watch;
