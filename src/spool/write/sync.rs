//! The synchronization primitives of [`super::group`].
//!
//! `group.rs` imports them from here, so that `tests/unit/spool_loom.rs` can compile the same file
//! with loom's versions and try every interleaving. Every other build uses those of `std`.

pub use std::sync::atomic::{AtomicU8, Ordering};
pub use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
