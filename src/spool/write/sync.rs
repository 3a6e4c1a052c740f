//! The synchronization primitives of [`super::group`], named in one place.
//!
//! `group.rs` takes them from its parent's `sync`, so that `tests/spool_loom.rs` can compile the
//! very same file against loom's versions and try every interleaving. Nothing here is conditional:
//! the ordinary build sees plain `std`.

pub use std::sync::atomic::{AtomicU8, Ordering};
pub use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
