//! Generated test cases: their number, and how each is tried. The model tests use it.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// The number of cases: `PIXELGATE_CASES`, else 50,000.
pub fn cases() -> u32 {
    std::env::var("PIXELGATE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(50_000)
}

/// Tries `test` on `cases` generated values. A failure prints the smallest value that fails.
pub fn run<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let result = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    if let Err(fault) = result {
        panic!("{fault}");
    }
}
