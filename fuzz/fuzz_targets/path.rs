//! Any bytes as a path: the guard reads it as the naive reading of SPEC 2 does.

#![no_main]

#[path = "../../tests/unit/naive/mod.rs"]
mod naive;

use libfuzzer_sys::fuzz_target;
use pixelgate::path::{Guard, Reading};

fuzz_target!(|path: &[u8]| {
    for event_path in ["/v1/event", "/pixel"] {
        let guard = Guard::new(event_path).expect("a canonical path");
        let fast = match guard.read(path) {
            Reading::Event => "event",
            Reading::Below => "below",
            Reading::Other => "other",
        };
        assert_eq!(fast, naive::read_path(event_path, path));
    }
});
