//! The rooms under test, by their own files: see `Cargo.toml`.

#[path = "../../src/config_error.rs"]
pub mod config_error;
#[path = "../../src/event/mod.rs"]
pub mod event;
#[path = "../../src/request/path.rs"]
pub mod path;
