//! Writes records to disk, from the bytes of an event to its commit.

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
