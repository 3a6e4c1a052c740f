//! The rooms under test, by their own files: see `Cargo.toml`.

#[path = "../../src/config_error.rs"]
#[allow(dead_code, reason = "the rooms under test need a part of it")]
pub mod config_error;
#[path = "../../src/env.rs"]
#[allow(dead_code, reason = "the rooms under test need a part of it")]
pub mod env;
#[path = "../../src/event/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the rooms under test need a part of it")]
pub mod event;
#[path = "../../src/request/path.rs"]
pub mod path;
#[path = "../../src/request/readings.rs"]
pub mod readings;

/// The names by which the tests' naive judge reaches the room that it is compared with.
pub mod internals {
    pub use crate::event;
}
