//! Generated cases: how many, and what is done with each. Used by the models.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestRunner};

/// `PIXELGATE_CASES`, 50,000 unless set.
pub fn cases() -> u32 {
    std::env::var("PIXELGATE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(50_000)
}

/// Tries `test` on so many values. A failure prints the smallest that fails.
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
