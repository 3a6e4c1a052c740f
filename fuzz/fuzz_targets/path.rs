//! Any bytes as a path: the guard reads it as the naive readings of SPEC 2 do.

#![no_main]

#[path = "../../tests/unit/naive/mod.rs"]
mod naive;

use libfuzzer_sys::fuzz_target;
use pixelgate::path::{Guard, Reading};

/// A path with more readings is read by the guard alone: the naive one takes them one by one.
const READINGS_MAX: usize = 1000;
/// So is a longer path.
const NAIVE_BYTES_MAX: usize = 64;

fuzz_target!(|path: &[u8]| {
    for event_path in ["/v1/event", "/pixel"] {
        let guard = Guard::new(event_path).expect("a canonical path");
        let fast = match guard.read(path) {
            Reading::Event => "event",
            Reading::Unknown => "unknown",
            Reading::Other => "other",
        };
        if path.len() > NAIVE_BYTES_MAX {
            continue;
        }
        if let Some(naive) = naive::path::read_path(event_path, path, READINGS_MAX) {
            assert_eq!(fast, naive);
        }
    }
});
